-- Where records lie, newest or oldest first: the merge of some of the sorted sets. A place is when the job was new
-- and, among those of one moment, its id, byte by byte. (Lua's own '<' on strings goes by the server's language.)

local function less(a, b)
  for position = 1, math.min(#a, #b) do
    local one, other = string.byte(a, position), string.byte(b, position)
    if one ~= other then
      return one < other
    end
  end
  return #a < #b
end

-- Whether place a comes before place b.
local function newest_first(a_born, a_id, b_born, b_id)
  return a_born > b_born or (a_born == b_born and less(b_id, a_id))
end

local function oldest_first(a_born, a_id, b_born, b_id)
  return a_born < b_born or (a_born == b_born and less(a_id, b_id))
end

local NEWEST = { range = 'ZREVRANGE', before = newest_first }
local OLDEST = { range = 'ZRANGE', before = oldest_first }

-- The number, in a sorted set, of the first place that comes after (born, id).
local function seek(key, way, born, id)
  local exact = exactly(born)
  local low
  if way == NEWEST then
    low = call('ZCOUNT', key, '(' .. exact, '+inf')
  else
    low = call('ZCOUNT', key, '-inf', '(' .. exact)
  end
  local high = low + call('ZCOUNT', key, exact, exact)
  while low < high do -- among those of one moment
    local middle = math.floor((low + high) / 2)
    if way.before(born, id, born, call(way.range, key, middle, middle)[1]) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

-- Go on to a stream's next place; false at its end.
local function advance(stream, way)
  stream.at = stream.at + 2
  if not stream.lying[stream.at] then
    stream.lying = call(way.range, stream.key, stream.number, stream.number + stream.size - 1, 'WITHSCORES')
    stream.number = stream.number + stream.size
    stream.size = math.min(stream.size * 2, 250)
    stream.at = 1
  end
  stream.id, stream.born = stream.lying[stream.at], tonumber(stream.lying[stream.at + 1])
  return stream.id ~= nil
end

-- Up to `wanted` places after (born, id), as {id, born, id, born, ...}, ended by the first that is beyond `last`.
local function places(keys, way, born, id, last, wanted)
  local heap = {}
  local function above(a, b)
    return way.before(a.born, a.id, b.born, b.id)
  end
  local function sink(number)
    while true do
      local first = number
      for child = 2 * number, 2 * number + 1 do
        if heap[child] and above(heap[child], heap[first]) then
          first = child
        end
      end
      if first == number then
        return
      end
      heap[number], heap[first] = heap[first], heap[number]
      number = first
    end
  end
  local size = math.max(2, math.min(250, math.ceil(2 * wanted / #keys)))
  if #keys == 1 then
    size = wanted
  end
  for _, key in ipairs(keys) do
    local stream = { key = key, number = seek(key, way, born, id), size = size, at = -1, lying = {} }
    if advance(stream, way) then
      heap[#heap + 1] = stream
    end
  end
  for number = math.floor(#heap / 2), 1, -1 do
    sink(number)
  end
  local found = {}
  while heap[1] and #found < 2 * wanted do
    local first = heap[1]
    if way.before(last, '', first.born, '') then
      break
    end
    found[#found + 1] = first.id
    found[#found + 1] = first.lying[first.at + 1]
    if not advance(first, way) then
      heap[1] = heap[#heap]
      heap[#heap] = nil
    end
    sink(1)
  end
  return found
end

-- The sorted sets of the kinds and states that fit: {actors, categories, queues, states}, each a set, or false for all.
local function fitting(filters)
  local keys = {}
  for _, name in ipairs(call('SMEMBERS', PARTITIONS)) do
    local fits, number = true, 0
    for part in string.gmatch(name, '[^\n]*\n?') do
      number = number + 1
      local wanted = filters[number]
      fits = fits and (not wanted or wanted[string.gsub(part, '\n', '')] ~= nil)
    end
    if fits then
      keys[#keys + 1] = base .. 'in:' .. name
    end
  end
  return keys
end
