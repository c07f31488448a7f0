-- Drop messages of a queue that nobody has. The first call sets aside what there is at that moment; it and the
-- following ones delete it bit by bit, so that nobody waits long.
--
-- ARGV[1]: {queue, whether this is the first call, how many to delete}
-- Returns {how many were set aside, how many are left}.

local queue, first, limit = unpack(cmsgpack.unpack(ARGV[1]))
local doomed = key('purge', queue)

local count = 0
if first then
  for _, kind in ipairs({ 'ready', 'delayed' }) do
    local line = key(kind, queue)
    local size = call('ZCARD', line)
    if size > 0 then
      count = count + size
      -- One that was cut short may have left something here.
      if call('EXISTS', doomed) == 1 then
        call('ZUNIONSTORE', doomed, 2, doomed, line)
        call('DEL', line)
      else
        call('RENAME', line, doomed)
      end
    end
  end
  call('ZREM', NEXT, queue)
end

local popped, ids = call('ZPOPMIN', doomed, limit), {}
for number = 1, #popped, 2 do
  ids[#ids + 1] = popped[number]
end
if ids[1] then
  call('HDEL', MESSAGES, unpack(ids))
end
return { count, call('ZCARD', doomed) }
