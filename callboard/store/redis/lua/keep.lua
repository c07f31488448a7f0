-- Keep a value: {now, kind, name, ttl, whether only if there is none}; ARGV[2] is the value.

local now, kind, name, ttl, only_new = unpack(asked)
now = clock(now)
if only_new and living(kind, name, now) then
  return 0
end
keep(kind, name, ARGV[2], now, ttl)
return 1
