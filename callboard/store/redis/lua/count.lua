-- How many records there are of each kind and state.

local counts = {}
for _, name in ipairs(call('SMEMBERS', PARTITIONS)) do
  counts[#counts + 1] = name
  counts[#counts + 1] = call('ZCARD', base .. 'in:' .. name)
end
return counts
