-- What all scripts share. KEYS[1] is what every key of the namespace begins with, hash tag included, so that a
-- cluster has them all in one slot; ARGV[1] is what is asked, as MessagePack. Times are seconds since the epoch.

local base = KEYS[1] .. 'store:'
local call = redis.call
local asked = cmsgpack.unpack(ARGV[1])

-- By Redis's own clock, so that hosts whose clocks differ agree on what has expired. Tests bring their own.
local function clock(given)
  if given then
    return given
  end
  local time = call('TIME')
  return time[1] + time[2] / 1e6
end

local function exactly(number)
  return string.format('%.17g', number)
end
