-- Claim a key: {now, key, owner, ttl}. Returns who has it.

local now, name, owner, ttl = unpack(asked)
now = clock(now)
local holder = living('key', name, now)
if holder and holder ~= owner then
  return holder
end
keep('key', name, owner, now, ttl)
return owner
