-- Add messages, or exchange each for one that a worker holds. Safe to repeat: a sender numbers its calls, and
-- one that isn't newer than the last is known to have been done.
--
-- ARGV[1]: {sender, number of the call, messages: {queue, due or 0[, worker, id of its claim]}}
-- ARGV[2...]: the messages' values
-- Returns which of them (1, 2, ...) were left out because the claim was gone.

local REMEMBERED = 900 -- seconds

local sender, number, messages = unpack(cmsgpack.unpack(ARGV[1]))
local mark = key('sender', sender)

local seen = call('GET', mark)
if seen then
  local last = cmsgpack.unpack(seen)
  if last[1] >= number then
    return last[1] == number and last[2] or {}
  end
end

local gone, kept, contents = {}, {}, {}
for place, message in ipairs(messages) do
  local worker, id = message[3], message[4]
  if worker and call('HDEL', key('claims', worker), id) == 0 then
    gone[#gone + 1] = place
  else
    if worker then
      call('HDEL', MESSAGES, id)
    end
    kept[#kept + 1] = message
    contents[#contents + 1] = ARGV[place + 1]
  end
end
if kept[1] then
  put(kept, contents, clock())
end
call('SET', mark, cmsgpack.pack({ number, gone }), 'EX', REMEMBERED)
return gone
