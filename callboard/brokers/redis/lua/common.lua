-- What all scripts share. KEYS[1] is what every key of the namespace begins with, hash tag included, so that
-- a cluster has them all in one slot. All times are microseconds since the epoch, by the server's clock.

local base = KEYS[1]
local call = redis.call

-- Whoever waits looks by himself within a second, so only what is due before that is worth a ring.
local SOON = 1100000

local function key(kind, name)
  return base .. kind .. ':' .. name
end

local MESSAGES, PLACE, NEXT = base .. 'messages', base .. 'place', base .. 'next'
local WORKERS, IDLE, QUEUES = base .. 'workers', base .. 'idle', base .. 'queues'

local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Numbers of this size lose digits in Lua's own conversion.
local function text(number)
  return string.format('%.0f', number)
end

-- Reserve places in line: the time, or one more than the last place where many come in a microsecond, or the
-- clock stepped back. A place is a message's id, too, so no two messages of a namespace have the same.
local function places(count, now)
  local last = call('SET', PLACE, text(now + count - 1), 'GET')
  if last and tonumber(last) >= now then
    now = tonumber(last) + 1
    call('SET', PLACE, text(now + count - 1))
  end
  return now
end

-- Wake up to `count` workers that wait for a queue. Who stands in the queue's set but is busy, or has lost the
-- connection on which it listens, is passed over.
local function ring(queue, count)
  local waiting = key('idle', queue)
  while count > 0 do
    local worker = call('SPOP', waiting)
    if not worker then
      return
    end
    if call('SREM', IDLE, worker) == 1 and call('SPUBLISH', key('bell', worker), '!') > 0 then
      count = count - 1
    end
  end
end

-- Add messages, each {queue, when it is due or 0}, and their values.
local function put(messages, contents, now)
  local place = places(#messages, now)
  local values, ready, delayed, soonest, soon = {}, {}, {}, {}, {}
  for number, message in ipairs(messages) do
    local queue, due, id = message[1], message[2], text(place)
    place = place + 1
    values[#values + 1] = id
    values[#values + 1] = contents[number]
    local line, score = ready, id
    if due > now then
      line, score = delayed, due
      soonest[queue] = math.min(soonest[queue] or due, due)
      if due < now + SOON then
        soon[queue] = (soon[queue] or 0) + 1
      end
    end
    line[queue] = line[queue] or {}
    table.insert(line[queue], score)
    table.insert(line[queue], id)
  end
  call('HSET', MESSAGES, unpack(values))
  for queue, members in pairs(delayed) do
    call('ZADD', key('delayed', queue), unpack(members))
    call('ZADD', NEXT, 'LT', soonest[queue], queue)
    ring(queue, soon[queue] or 0)
  end
  for queue, members in pairs(ready) do
    call('ZADD', key('ready', queue), unpack(members))
    ring(queue, #members / 2)
  end
end
