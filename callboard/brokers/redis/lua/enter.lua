-- A worker comes, or comes back on a new connection: what it says it holds is compared with what it has here.
-- A claim that it doesn't know of was made by a call whose answer was lost, so it was never started.
--
-- ARGV[1]: {worker, number of the connection, its queues, the ids that it knows, whether it is new}
-- Returns 0 if it was taken for dead meanwhile.

local worker, connection, queues, known, new = unpack(cmsgpack.unpack(ARGV[1]))
local entry = key('worker', worker)

local last = call('HGET', entry, 'connection')
if not new and not last then
  return 0
end
if last and tonumber(last) > connection then
  return 1 -- nobody reads this: it comes late, from a connection that was given up
end
call('HSET', entry, 'connection', connection, 'queues', cmsgpack.pack(queues))
call('ZADD', WORKERS, clock(), worker)
for _, queue in ipairs(queues) do
  call('SADD', QUEUES, queue)
end
local holds, unknown = {}, {}
for _, id in ipairs(known) do
  holds[id] = true
end
for _, id in ipairs(call('HKEYS', key('claims', worker))) do
  if not holds[id] then
    unknown[#unknown + 1] = id
  end
end
ring_for(give_back(worker, unknown))
return 1
