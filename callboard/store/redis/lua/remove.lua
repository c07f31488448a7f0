-- Forget jobs that have ended, the oldest first: {filters; born, id; before when they ended; how many}. Returns how
-- many went, how many were looked at, and the last place.

local filters, born, id, before, wanted = unpack(asked)
local found = places(fitting(filters), OLDEST, born, id, before, wanted)
local gone = 0
for number = 1, #found, 2 do
  local job = found[number]
  local record = cmsgpack.unpack(call('HGET', RECORDS, job))
  if (value(record, FINISHED) or record[AT]) < before then
    remove(record, job)
    gone = gone + 1
  end
end
account()
return { gone, #found / 2, found[#found - 1] or '', found[#found] or '0' }
