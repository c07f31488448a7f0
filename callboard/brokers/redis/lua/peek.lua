-- The values of the first messages of a queue.
--
-- ARGV[1]: {queue, how many}

local queue, limit = unpack(cmsgpack.unpack(ARGV[1]))

local ids = call('ZRANGE', key('ready', queue), 0, limit - 1)
return ids[1] and call('HMGET', MESSAGES, unpack(ids)) or {}
