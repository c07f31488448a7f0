-- What all scripts share. KEYS[1] is what every key of the namespace begins with, hash tag included, so that
-- a cluster has them all in one slot. All times are microseconds since the epoch, by the server's clock.

local base = KEYS[1]
local call = redis.call

-- Whoever waits looks by himself within a second, so only what is due before that is worth a ring.
local SOON = 1100000
local PROMOTED_AT_ONCE = 500

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
  local last = tonumber(call('GET', PLACE) or '0')
  local first = now > last and now or last + 1
  call('SET', PLACE, text(first + count - 1))
  return first
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
    call('SADD', QUEUES, queue)
    call('ZADD', key('delayed', queue), unpack(members))
    call('ZADD', NEXT, 'LT', soonest[queue], queue)
    ring(queue, soon[queue] or 0)
  end
  for queue, members in pairs(ready) do
    call('SADD', QUEUES, queue)
    call('ZADD', key('ready', queue), unpack(members))
    ring(queue, #members / 2)
  end
end

-- Move what is due to the ends of its queues; returns how many came to each.
local function promote(now)
  local moved, left = {}, PROMOTED_AT_ONCE
  while left > 0 do
    local head = call('ZRANGE', NEXT, 0, 0, 'WITHSCORES')
    if not head[1] or tonumber(head[2]) > now then
      break
    end
    local queue = head[1]
    local delayed = key('delayed', queue)
    local ids = call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, left)
    if ids[1] then
      local place, members = places(#ids, now), {}
      for _, id in ipairs(ids) do
        members[#members + 1] = text(place)
        members[#members + 1] = id
        place = place + 1
      end
      call('ZADD', key('ready', queue), unpack(members))
      call('ZREM', delayed, unpack(ids))
      moved[queue] = (moved[queue] or 0) + #ids
      left = left - #ids
    end
    local following = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    if following[1] then
      call('ZADD', NEXT, following[2], queue)
    else
      call('ZREM', NEXT, queue)
    end
  end
  return moved
end

-- Put a claimed message back where it was. `claim` is what the worker's hash has of it: its place and queue.
local function restore(id, claim)
  local place, queue = string.match(claim, '^(%d+) (.*)$')
  call('ZADD', key('ready', queue), place, id)
  return queue
end

local function give_back(worker, ids)
  local claims, back = key('claims', worker), {}
  for _, id in ipairs(ids) do
    local claim = call('HGET', claims, id)
    if claim then
      call('HDEL', claims, id)
      local queue = restore(id, claim)
      back[queue] = (back[queue] or 0) + 1
    end
  end
  return back
end

-- Delete messages that a worker is done with. An id that isn't its claim any more is one that is deleted
-- already: this is a repetition, for the answer to the first time was lost.
local function ack(worker, ids)
  for first = 1, #ids, 1000 do -- Lua passes no more than some thousands of arguments
    local last = math.min(first + 999, #ids)
    call('HDEL', key('claims', worker), unpack(ids, first, last))
    call('HDEL', MESSAGES, unpack(ids, first, last))
  end
end

local function ring_for(counts)
  for queue, count in pairs(counts) do
    ring(queue, count)
  end
end

-- Forget a worker. Its claims must be gone.
local function forget(worker)
  local entry = key('worker', worker)
  local queues = call('HGET', entry, 'queues')
  if queues then
    for _, queue in ipairs(cmsgpack.unpack(queues)) do
      call('SREM', key('idle', queue), worker)
    end
  end
  call('DEL', entry, key('claims', worker))
  call('SREM', IDLE, worker)
  call('ZREM', WORKERS, worker)
end

-- Let others have what a dead worker held; they are told that it may have been started. Returns how many.
local function rescue(worker)
  local claims, back, count = call('HGETALL', key('claims', worker)), {}, 0
  for number = 1, #claims, 2 do
    local id = claims[number]
    local value = call('HGET', MESSAGES, id)
    if value then
      call('HSET', MESSAGES, id, '1' .. string.sub(value, 2))
      local queue = restore(id, claims[number + 1])
      back[queue] = (back[queue] or 0) + 1
      count = count + 1
    end
  end
  forget(worker)
  ring_for(back)
  return count
end

-- Find out who is dead, and rescue what they held; returns their names, each with how many messages.
--
-- Every worker shows itself several times within a lease. Who has been silent for a whole one is dead if nobody
-- listens on its channel any more: when a process ends, however it ends, its connections do. Whose connection
-- stands may be frozen, or cut off by a network that says nothing: it has two and a half leases.
--
-- Silence counts only while somebody has been watching. After the server was away, or everybody else was, all
-- have a whole lease to come back.
local function bury(watcher, now, lease)
  local watch = base .. 'watch'
  local since, last = now, now
  local seen = call('GET', watch)
  if seen then
    since, last = unpack(cmsgpack.unpack(seen))
    if now - last > lease / 2 or now < last then
      since = now
    end
  end
  call('SET', watch, cmsgpack.pack({ since, now }))
  local dead = {}
  for _, worker in ipairs(call('ZRANGEBYSCORE', WORKERS, '-inf', now - lease)) do
    local heard = math.max(tonumber(call('ZSCORE', WORKERS, worker)), since)
    local gone = now - heard >= 2.5 * lease
    if not gone and now - heard >= lease and worker ~= watcher then
      gone = call('SPUBLISH', key('bell', worker), '?') == 0
    end
    if gone then
      dead[#dead + 1] = worker
      dead[#dead + 1] = rescue(worker)
    end
  end
  -- The clock stepped back: what seems to come from the future was before that.
  for _, worker in ipairs(call('ZRANGEBYSCORE', WORKERS, '(' .. text(now), '+inf')) do
    call('ZADD', WORKERS, now, worker)
  end
  return dead
end
