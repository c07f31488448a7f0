-- What happens to workers and to what they have claimed.

local PROMOTED_AT_ONCE = 500

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

-- Delete messages that a worker is done with. Those that aren't its claims any more stay.
local function ack(worker, ids)
  local claims = key('claims', worker)
  for first = 1, #ids, 1000 do -- Lua passes no more than some thousands of arguments
    local some, held = { unpack(ids, first, math.min(first + 999, #ids)) }, {}
    for number, claim in ipairs(call('HMGET', claims, unpack(some))) do
      if claim then
        held[#held + 1] = some[number]
      end
    end
    if held[1] then
      call('HDEL', claims, unpack(held))
      call('HDEL', MESSAGES, unpack(held))
    end
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
