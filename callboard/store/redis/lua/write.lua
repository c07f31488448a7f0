-- Write what has become known of jobs: ARGV[2...] are the jobs' ids, each with what was said of it, as a record.
-- Each field ends up with what the change of the highest order said of it, the last one written among equals.

local STORY_LENGTH = asked[1]

local function same(a, b)
  return a[1] == b[1] and a[2] == b[2] and a[5] == b[5]
end

-- A batch that is written again, because its answer was lost, tells nothing twice.
local function tell(story, lines)
  local before = #story
  for _, line in ipairs(lines) do
    local known = false
    for number = 1, before do
      known = known or same(story[number], line)
    end
    if not known then
      story[#story + 1] = line
    end
  end
  if #story <= STORY_LENGTH then
    return story
  end
  local newest = {}
  for number = #story - STORY_LENGTH + 1, #story do
    newest[#newest + 1] = story[number]
  end
  return newest
end

local function merge(record, said)
  local known = record[KNOWN]
  local places = {}
  for place = 1, #known, 3 do
    places[known[place]] = place
  end
  local news = said[KNOWN]
  for place = 1, #news, 3 do
    local field, order = news[place], news[place + 1]
    local there = places[field]
    if not there then
      there = #known + 1
      known[there] = field
    elseif order < known[there + 1] then
      there = nil
    end
    if there then
      known[there + 1], known[there + 2] = order, news[place + 2]
    end
  end
  if said[ORDER] >= record[ORDER] then
    record[ORDER], record[STATE], record[AT] = said[ORDER], said[STATE], said[AT]
  end
  if said[STORY][1] then
    record[STORY] = tell(record[STORY], said[STORY])
  end
end

for number = 2, #ARGV, 2 do
  local id, packed = ARGV[number], ARGV[number + 1]
  local said = cmsgpack.unpack(packed)
  local was = call('HGET', RECORDS, id)
  if was then
    local record = cmsgpack.unpack(was)
    local before = partition(record)
    local tags, print = find(said[KNOWN], TAGS), find(said[KNOWN], FINGERPRINT)
    if tags then
      untag(record, id)
    end
    if print then
      unfingerprint(record, id)
    end
    merge(record, said)
    call('HSET', RECORDS, id, cmsgpack.pack(record))
    local after = partition(record)
    if after ~= before then
      leave(before, id)
      enter(after, record[BORN], id)
    end
    if tags then
      tag(record, id)
    end
    if print then
      fingerprint(record, id)
    end
  else
    call('HSET', RECORDS, id, packed)
    enter(partition(said), said[BORN], id)
    tag(said, id)
    fingerprint(said, id)
  end
end
account()
