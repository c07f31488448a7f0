-- The steps of a walk over a queue. Who walks holds the queue's lock, and listens on a channel of its own: a lock
-- whose holder's connection has ended is free.
--
-- ARGV[1]: {queue, token of the walk, step, ...}, where the step is one of
--   'lock': returns 1, or 0 if another walk is under way.
--   'extent': returns {how many messages there are, the place of the last}.
--   'page', place, last place, limit: returns {{id, place, ...}, {value, ...}} of the messages behind a place.
--   'change', {id, 0 or {queue, due or 0}}, ...: discards or moves messages; ARGV[2...] has the values of the
--     moved ones. Returns which of them (1, 2, ...) were done; those that a worker has claimed are left alone.
--   'unlock'
-- All but the first return false if the lock is another's by now.

local EXPIRES = 120000 -- milliseconds; for a host that vanished without closing its connections

local order = cmsgpack.unpack(ARGV[1])
local queue, token, step = order[1], order[2], order[3]
local lock, ready = key('walk', queue), key('ready', queue)

local holder = call('GET', lock)
if step == 'lock' then
  if holder and holder ~= token and call('SPUBLISH', key('walk', holder), '?') > 0 then
    return 0
  end
  call('SET', lock, token, 'PX', EXPIRES)
  return 1
end
if not holder then
  call('SET', lock, token, 'PX', EXPIRES) -- nobody has taken it since it expired
elseif holder ~= token then
  return false
end

if step == 'unlock' then
  call('DEL', lock)
  return 1
end
call('PEXPIRE', lock, EXPIRES)

if step == 'extent' then
  return { call('ZCARD', ready), call('ZRANGE', ready, -1, -1, 'WITHSCORES')[2] or '0' }
end

if step == 'page' then
  local found, ids = call('ZRANGEBYSCORE', ready, '(' .. order[4], order[5], 'WITHSCORES', 'LIMIT', 0, order[6]), {}
  for number = 1, #found, 2 do
    ids[#ids + 1] = found[number]
  end
  return { found, ids[1] and call('HMGET', MESSAGES, unpack(ids)) or {} }
end

local done, moved, values, content = {}, {}, {}, 1
for number = 1, #order - 3 do
  local id, target = order[number + 3][1], order[number + 3][2]
  if target ~= 0 then
    content = content + 1
  end
  if call('ZREM', ready, id) == 1 then
    call('HDEL', MESSAGES, id)
    done[#done + 1] = number
    if target ~= 0 then
      call('SADD', QUEUES, target[1])
      moved[#moved + 1] = target
      values[#values + 1] = ARGV[content]
    end
  end
end
if moved[1] then
  put(moved, values, clock())
end
return done
