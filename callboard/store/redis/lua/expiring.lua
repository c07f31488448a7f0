-- Values with a time to live: each in a key of its own, which begins with the moment at which it is over. Redis
-- throws the key away a little later.

local MARGIN = 60000 -- milliseconds

-- The value; nil if its time is over.
local function living(kind, name, now)
  local found = call('GET', base .. kind .. ':' .. name)
  if not found then
    return nil
  end
  local line = string.find(found, '\n', 1, true)
  if tonumber(string.sub(found, 1, line - 1)) <= now then
    return nil
  end
  return string.sub(found, line + 1)
end

local function keep(kind, name, value, now, ttl)
  local milliseconds = math.ceil(math.max(ttl, 0) * 1000) + MARGIN
  call('SET', base .. kind .. ':' .. name, exactly(now + ttl) .. '\n' .. value, 'PX', milliseconds)
end
