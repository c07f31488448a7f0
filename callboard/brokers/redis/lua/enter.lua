-- A worker comes, or comes back on a new connection, or after it was taken for dead: what it says it holds is
-- compared with what it has here.
--
-- A claim that it doesn't know of was made by a call whose answer was lost: it was never started, so it goes back.
-- One that it knows of and that isn't here was undone, by a crash of Redis or by whoever took it for dead. If
-- nobody has claimed the message since, the worker may go on with it.
--
-- ARGV[1]: {worker, number of the connection, its queues, the ids that it knows, each followed by its queue}
-- Returns the ids that it has lost.

local worker, connection, queues, known = unpack(cmsgpack.unpack(ARGV[1]))
local entry, claims = key('worker', worker), key('claims', worker)

local last = call('HGET', entry, 'connection')
if last and tonumber(last) > connection then
  return {} -- nobody reads this: it comes late, from a connection that was given up
end
call('HSET', entry, 'connection', connection, 'queues', cmsgpack.pack(queues))
call('ZADD', WORKERS, clock(), worker)
for _, queue in ipairs(queues) do
  call('SADD', QUEUES, queue)
end

local holds, lost, unknown = {}, {}, {}
for number = 1, #known, 2 do
  local id, queue = known[number], known[number + 1]
  holds[id] = true
  if call('HEXISTS', claims, id) == 0 then
    local place = call('ZSCORE', key('ready', queue), id)
    if place then
      call('ZREM', key('ready', queue), id)
      call('HSET', claims, id, place .. ' ' .. queue)
    else
      lost[#lost + 1] = id
    end
  end
end
for _, id in ipairs(call('HKEYS', claims)) do
  if not holds[id] then
    unknown[#unknown + 1] = id
  end
end
ring_for(give_back(worker, unknown))
return lost
