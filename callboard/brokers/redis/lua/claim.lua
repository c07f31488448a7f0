-- What a worker does in one go: let go of some messages, claim others, show that it lives, look who doesn't.
--
-- ARGV[1]: {worker, number of its connection, ids that it acks, ids that it gives back, how many it wants,
--   how many of eight it has taken, its queues in one list for each priority, what if there is nothing
--   (1: it waits to be rung for, 0: it doesn't wait any more, -1: as before), queues for which it isn't to be
--   rung any more, seconds of silence after which a worker is dead (0: don't look)}
-- Returns {1, how many of eight, microseconds until something is due or -1, "queue id queue id ..." with the
--   queues as numbers in the order given, the messages' values, the workers found dead: name, messages, ...};
--   or {0} if it has to come back first: it was taken for dead, or has a newer connection.

local worker, connection, acks, returns, wanted, turn, tiers, waits, unwanted, lease =
  unpack(cmsgpack.unpack(ARGV[1]))

if call('HGET', key('worker', worker), 'connection') ~= text(connection) then
  return { 0 }
end
local now = clock()
call('ZADD', WORKERS, now, worker)
ack(worker, acks)
local others = give_back(worker, returns)
for _, queue in ipairs(unwanted) do
  call('SREM', key('idle', queue), worker)
end
local dead = lease > 0 and bury(worker, now, lease * 1000000) or {}

-- Picking: by priority, then by age; of every eight the last by age alone.

local names, lines = {}, {}

local function look(cursor, count)
  local found = call('ZRANGE', cursor.ready, cursor.taken, cursor.taken + count - 1, 'WITHSCORES')
  cursor.found, cursor.at = found, 1
  cursor.age = found[1] and tonumber(found[2])
end

local function line_up()
  for _, tier in ipairs(tiers) do
    local line = {}
    for _, name in ipairs(tier) do
      names[#names + 1] = name
      local cursor = { queue = name, number = #names - 1, ready = key('ready', name), taken = 0 }
      look(cursor, 1)
      if cursor.age then
        line[#line + 1] = cursor
      end
    end
    if line[1] then
      lines[#lines + 1] = line
    end
  end
end

local function oldest(line)
  local first
  for number, cursor in ipairs(line) do
    if not first or cursor.age < line[first].age then
      first = number
    end
  end
  return first
end

local function choose_line()
  local chosen = 1
  if turn == 7 then
    for number = 2, #lines do
      local here, there = lines[number], lines[chosen]
      if here[oldest(here)].age < there[oldest(there)].age then
        chosen = number
      end
    end
  end
  return chosen
end

local ids, claims, meta, taken = {}, {}, {}, {}

local function note(cursor, id, age)
  ids[#ids + 1] = id
  claims[#claims + 1] = id
  claims[#claims + 1] = age .. ' ' .. cursor.queue
  meta[#meta + 1] = cursor.number
  meta[#meta + 1] = id
  cursor.taken = cursor.taken + 1
  turn = (turn + 1) % 8
end

local function pick()
  local chosen = choose_line()
  local line = lines[chosen]
  local first = oldest(line)
  local cursor = line[first]
  note(cursor, cursor.found[cursor.at], cursor.found[cursor.at + 1])
  taken[cursor.queue] = cursor
  cursor.at = cursor.at + 2
  cursor.age = tonumber(cursor.found[cursor.at + 1])
  if not cursor.age then
    look(cursor, math.min(wanted - #ids, 16))
  end
  if not cursor.age then
    table.remove(line, first)
    if not line[1] then
      table.remove(lines, chosen)
    end
  end
end

-- What is left when there is but one queue to choose from.
local function take_all(cursor)
  cursor.found, cursor.at = nil, nil
  local found = call('ZRANGE', cursor.ready, cursor.taken, cursor.taken + wanted - #ids - 1, 'WITHSCORES')
  for number = 1, #found, 2 do
    note(cursor, found[number], found[number + 1])
  end
  taken[cursor.queue] = cursor
end

local moved = promote(now)
local values = {}
if wanted > 0 then
  line_up()
  while lines[1] and #ids < wanted do
    if #lines == 1 and #lines[1] == 1 then
      take_all(lines[1][1])
      break
    end
    pick()
  end
  for _, cursor in pairs(taken) do
    call('ZREMRANGEBYRANK', cursor.ready, 0, cursor.taken - 1)
  end
end

if ids[1] then
  values = call('HMGET', MESSAGES, unpack(ids))
  call('HSET', key('claims', worker), unpack(claims))
end

-- Waiting.

local soonest = -1
if ids[1] or waits == 0 then
  call('SREM', IDLE, worker)
elseif waits == 1 then
  call('SADD', IDLE, worker)
  if names[1] then
    for number, due in ipairs(call('ZMSCORE', NEXT, unpack(names))) do
      if due and (soonest < 0 or tonumber(due) - now < soonest) then
        soonest = math.max(0, tonumber(due) - now)
      end
      call('SADD', key('idle', names[number]), worker)
    end
  end
end
for queue, count in pairs(moved) do
  local own = taken[queue]
  ring(queue, count - (own and own.taken or 0))
end
ring_for(others)

return { 1, turn, text(soonest), table.concat(meta, ' '), values, dead }
