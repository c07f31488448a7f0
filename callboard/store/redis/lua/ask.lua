-- Ask something of workers: {what, whom it concerns, when, what was asked before that is forgotten}. Tells them
-- at once if anything has changed.

local what, whom, at, forgotten = unpack(asked)
local paused, cancelled, version = base .. 'paused', base .. 'cancelled', base .. 'version'
local changed = call('ZREMRANGEBYSCORE', cancelled, '-inf', forgotten)
if what == 'pause' then
  changed = changed + call('SADD', paused, whom)
elseif what == 'resume' then
  changed = changed + call('SREM', paused, whom)
elseif what == 'cancel' then
  changed = changed + call('ZADD', cancelled, 'NX', at, whom)
else
  changed = changed + call('ZREM', cancelled, whom)
end
if changed > 0 then
  -- The time, so that a Redis which was emptied never comes to a version that a worker has seen before.
  local time = call('TIME')
  local last = tonumber(call('GET', version)) or 0
  call('SET', version, exactly(math.max(last + 1, time[1] * 1000000 + time[2])))
  call('SPUBLISH', base .. 'control', '!')
end
