-- Move a number: {now, key, by, ttl, least or false, most or false, other keys}

local now, name, by, ttl, least, most, others = unpack(asked)
now = clock(now)
local value = (tonumber(living('number', name, now)) or 0) + by
local total = value
for _, other in ipairs(others) do
  total = total + (tonumber(living('number', other, now)) or 0)
end
if (least and value < least) or (most and math.max(value, total) > most) then
  return 0
end
keep('number', name, exactly(value), now, ttl)
return 1
