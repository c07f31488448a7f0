-- What is asked of workers: {the version that is known, when a request has been forgotten}. Returns the version,
-- or the version, the paused queues, and the cancelled jobs with their times.

local known, forgotten = unpack(asked)
local version = call('GET', base .. 'version') or '0'
if tonumber(version) == known then
  return { version }
end
return {
  version,
  call('SMEMBERS', base .. 'paused'),
  call('ZRANGEBYSCORE', base .. 'cancelled', '(' .. exactly(forgotten), '+inf', 'WITHSCORES'),
}
