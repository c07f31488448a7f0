-- The places of a key: {now, key, job, 'enter', 'stay' or 'leave', places, ttl, came back}. Entering returns the
-- seconds until the job is to look again, as text, and about how many wait before it. What this is about is told in
-- callboard/store/places.py.

local now, name, job, what, places, ttl, came_back = unpack(asked)
now = clock(now)
local BRISK, SHORTEST, LOOKS, WEIGHT, KEPT = 0.8, 0.001, 10, 0.2, 3600

local known = {holders = {}, mean = 0.1, line = 0, late = 0, waiting = 0}
local found = living('places', name, now)
if found then
  known = cmsgpack.unpack(found)
end
local holders = known.holders
local answer = {'0', 0}

local function hold()
  local held = holders[job]
  holders[job] = {held and held[1] or now, now + ttl}
end

local function enter()
  local held, count, ages = false, 0, 0
  for holder, times in pairs(holders) do
    if times[2] <= now then
      holders[holder] = nil
    else
      count = count + 1
      ages = ages + now - times[1]
      held = held or holder == job
    end
  end
  local ahead = math.max(known.line, known.late) > now
  if held or (count < places and (came_back or not ahead)) then
    hold()
    if came_back and known.waiting > 0 then
      known.waiting = known.waiting - 1
    end
    return
  end
  if not ahead then
    known.waiting = came_back and 1 or 0
  end
  if not came_back then
    known.waiting = known.waiting + 1
  end
  local mean = math.max(known.mean, count > 0 and ages / count or 0)
  local between = math.max(SHORTEST, BRISK * mean / places)
  local furthest = now + math.max(known.waiting / LOOKS, math.min(math.max(mean / 4, 0.05), 15))
  local line = came_back and 'late' or 'line'
  known[line] = math.min(math.max(known[line], now) + between, furthest)
  local wait = known[line] - now
  answer = {exactly(wait), math.min(known.waiting - 1, math.floor(wait / between))}
end

if what == 'enter' then
  enter()
elseif what == 'stay' then
  if holders[job] then
    hold()
  end
elseif holders[job] then
  known.mean = known.mean + WEIGHT * (now - holders[job][1] - known.mean)
  holders[job] = nil
end

local last = math.max(known.line, known.late, now)
for _, times in pairs(holders) do
  last = math.max(last, times[2])
end
keep('places', name, cmsgpack.pack(known), now, last - now + KEPT)
return answer
