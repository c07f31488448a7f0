-- When a job may start under a rate limit: {now, key, every, burst, came back}. Returns the seconds, as text. What the
-- three moments are is told in callboard/store/slots.py.

local now, name, every, burst, came_back = unpack(asked)
now = clock(now)
local TOLERANCE, KEPT = 0.25, 60
local slots = {0, 0, 0}
local found = living('slots', name, now)
if found then
  slots = cmsgpack.unpack(found)
end
local line, late, ran = unpack(slots)
local lull = (burst - 1) * every
local wait

if not came_back then
  local slot = line - lull
  line = math.max(line, now) + every
  if slot > now then
    wait = slot - now
  end
end
if not wait then
  if ran - lull <= now + math.min(every, TOLERANCE) then
    ran = math.max(ran, now) + every
    wait = 0
  else
    local slot = math.max(late, ran - lull, now)
    late = slot + every
    wait = slot - now
  end
end
keep('slots', name, cmsgpack.pack({line, late, ran}), now, math.max(line, late, ran) - now + KEPT)
return exactly(wait)
