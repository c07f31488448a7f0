-- A worker's sign of life: {now, worker, seconds for which a silent one's is kept}; ARGV[2] is what it says.

local now, worker, kept = unpack(asked)
now = clock(now)
call('HSET', base .. 'workers', worker, ARGV[2])
call('ZADD', base .. 'beats', now, worker)
for _, silent in ipairs(call('ZRANGEBYSCORE', base .. 'beats', '-inf', now - kept)) do
  call('HDEL', base .. 'workers', silent)
  call('ZREM', base .. 'beats', silent)
end
