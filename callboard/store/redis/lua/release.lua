-- Give a key back: {now, key, owner}

local now, name, owner = unpack(asked)
if living('key', name, clock(now)) ~= owner then
  return 0
end
return call('DEL', base .. 'key:' .. name)
