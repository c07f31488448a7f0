-- A worker goes: its last acks, then what it still holds is ready for others.
--
-- ARGV[1]: {worker, ids that it acks}

local worker, acks = unpack(cmsgpack.unpack(ARGV[1]))

ack(worker, acks)
local back = give_back(worker, call('HKEYS', key('claims', worker)))
forget(worker)
ring_for(back)
return 1
