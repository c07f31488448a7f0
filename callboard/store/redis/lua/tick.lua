-- What became of a tick: {schedule, when it was due, how many are kept, up to when all are dealt with, or false};
-- ARGV[2] says it. Returns 0 if that is known already.

local schedule, due, kept, till = unpack(asked)
local ticks, field = base .. 'ticks:' .. schedule, schedule .. '\nuntil'
local known = call('ZCOUNT', ticks, exactly(due), exactly(due)) > 0
if not known then
  call('ZADD', ticks, exactly(due), ARGV[2])
  call('ZREMRANGEBYRANK', ticks, 0, -kept - 1)
end
if till then
  local before = tonumber(call('HGET', base .. 'schedules', field)) or till
  call('HSET', base .. 'schedules', field, exactly(math.max(before, till)))
end
return known and 0 or 1
