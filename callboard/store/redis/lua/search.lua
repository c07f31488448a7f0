-- The newest records after a place: {a sorted set ('tag:NAME', 'error:NAME'), or false; filters, or false; born, id;
-- the oldest that is wanted; how many}. Returns their places, and the records.

local one, filters, born, id, oldest, wanted = unpack(asked)
local keys
if one then
  keys = { base .. one }
else
  keys = fitting(filters)
end
local found = places(keys, NEWEST, born, id, oldest, wanted)
local records = {}
for number = 1, #found, 2 do
  records[#records + 1] = call('HGET', RECORDS, found[number])
end
return { found, records }
