-- Records that could never be written: {how many, since, until}

local count, since, till = unpack(asked)
local counters = base .. 'counters'
call('HINCRBY', counters, 'records.dropped', count)
local earliest = tonumber(call('HGET', counters, 'records.dropped_since')) or since
local latest = tonumber(call('HGET', counters, 'records.dropped_until')) or till
call('HSET', counters, 'records.dropped_since', math.min(earliest, since))
call('HSET', counters, 'records.dropped_until', math.max(latest, till))
