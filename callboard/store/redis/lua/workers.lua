-- What the workers say that gave a sign of life: {now, within how many seconds}

local now, within = unpack(asked)
local said = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', base .. 'beats', clock(now) - within, '+inf')) do
  said[#said + 1] = call('HGET', base .. 'workers', worker)
end
return said
