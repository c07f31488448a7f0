-- Records, and where they are found. A record is a list, see `callboard/store/redis/records.py`; what nobody said
-- is false. It lies in sorted sets by when the job was new: one for its kind and state, one for each tag, and one
-- for its error's fingerprint.

local ORDER, STATE, AT, BORN, VALUES, ORDERS, STORY = 1, 2, 3, 4, 5, 6, 7
local ACTOR, CATEGORY, QUEUE, TAGS, FINISHED, FINGERPRINT = 1, 2, 3, 5, 11, 17

local RECORDS, PARTITIONS = base .. 'records', base .. 'partitions'

local function partition(record)
  local values = record[VALUES]
  return (values[ACTOR] or '') .. '\n' .. (values[CATEGORY] or '') .. '\n' .. (values[QUEUE] or '')
    .. '\n' .. record[STATE]
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
  for _, word in ipairs(record[VALUES][TAGS] or {}) do
    call('ZADD', base .. 'tag:' .. word, record[BORN], id)
  end
end

local function untag(record, id)
  for _, word in ipairs(record[VALUES][TAGS] or {}) do
    call('ZREM', base .. 'tag:' .. word, id)
  end
end

local function fingerprint(record, id)
  local print = record[VALUES][FINGERPRINT]
  if print and print ~= '' then
    call('ZADD', base .. 'error:' .. print, record[BORN], id)
  end
end

local function unfingerprint(record, id)
  local print = record[VALUES][FINGERPRINT]
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
