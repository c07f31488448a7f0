-- How many messages some queues have.
--
-- ARGV[1]: {the queues}
-- Returns {ready, delayed, claimed, consumers, microseconds that the first of the ready ones has been so} for each.

local queues = unpack(cmsgpack.unpack(ARGV[1]))

local claimed, consumers = {}, {}
for _, worker in ipairs(call('ZRANGE', WORKERS, 0, -1)) do
  for _, queue in ipairs(cmsgpack.unpack(call('HGET', key('worker', worker), 'queues'))) do
    consumers[queue] = (consumers[queue] or 0) + 1
  end
  for _, claim in ipairs(call('HVALS', key('claims', worker))) do
    local queue = string.match(claim, '^%d+ (.*)$')
    claimed[queue] = (claimed[queue] or 0) + 1
  end
end

local found, now = {}, clock()
for number, queue in ipairs(queues) do
  local first = call('ZRANGE', key('ready', queue), 0, 0, 'WITHSCORES')
  found[number] = {
    call('ZCARD', key('ready', queue)),
    call('ZCARD', key('delayed', queue)),
    claimed[queue] or 0,
    consumers[queue] or 0,
    first[2] and math.max(0, now - tonumber(first[2])) or 0,
  }
end
return found
