-- Records, and where they are found. A record is a list, see `callboard/store/redis/records.py`. It lies in sorted
-- sets by when the job was new: one for its kind and state, one for each tag, and one for its error's fingerprint.

local ORDER, STATE, AT, BORN, KNOWN, STORY = 1, 2, 3, 4, 5, 6
local ACTOR, CATEGORY, QUEUE, TAGS, FINISHED, FINGERPRINT = 0, 1, 2, 4, 10, 16

local RECORDS, PARTITIONS = base .. 'records', base .. 'partitions'

-- Where in what is known a field's value lies. The field and how new it is come before it.
local function find(known, field)
  for place = 1, #known, 3 do
    if known[place] == field then
      return place + 2
    end
  end
end

local function value(record, field)
  local place = find(record[KNOWN], field)
  return place and record[KNOWN][place]
end

local function partition(record)
  local actor, category, queue = '', '', ''
  local known = record[KNOWN]
  for place = 1, #known, 3 do
    local field = known[place]
    if field == ACTOR then
      actor = known[place + 2]
    elseif field == CATEGORY then
      category = known[place + 2]
    elseif field == QUEUE then
      queue = known[place + 2]
    end
  end
  return actor .. '\n' .. category .. '\n' .. queue .. '\n' .. record[STATE]
end

local entered, left = {}, {}

local function enter(name, born, id)
  call('ZADD', base .. 'in:' .. name, born, id)
  entered[name] = true
end

local function leave(name, id)
  call('ZREM', base .. 'in:' .. name, id)
  left[name] = true
end

-- Once all have entered and left, the set of partitions is put right.
local function account()
  for name in pairs(entered) do
    call('SADD', PARTITIONS, name)
  end
  for name in pairs(left) do
    if call('EXISTS', base .. 'in:' .. name) == 0 then
      call('SREM', PARTITIONS, name)
    end
  end
end

local function tag(record, id)
  for _, word in ipairs(value(record, TAGS) or {}) do
    call('ZADD', base .. 'tag:' .. word, record[BORN], id)
  end
end

local function untag(record, id)
  for _, word in ipairs(value(record, TAGS) or {}) do
    call('ZREM', base .. 'tag:' .. word, id)
  end
end

local function fingerprint(record, id)
  local print = value(record, FINGERPRINT)
  if print and print ~= '' then
    call('ZADD', base .. 'error:' .. print, record[BORN], id)
  end
end

local function unfingerprint(record, id)
  local print = value(record, FINGERPRINT)
  if print and print ~= '' then
    call('ZREM', base .. 'error:' .. print, id)
  end
end

local function remove(record, id)
  call('HDEL', RECORDS, id)
  leave(partition(record), id)
  untag(record, id)
  unfingerprint(record, id)
end
