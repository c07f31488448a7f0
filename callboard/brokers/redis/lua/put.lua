-- Add messages, or exchange each for one that a worker holds. Safe to repeat: a sender numbers its calls, and
-- one that isn't newer than the last is known to have been done.
--
-- ARGV[1]: {sender, number of the call, messages: {queue, due or 0[, worker, id of its claim]}, queues that may
--   be new}
-- ARGV[2...]: the messages' values
-- Returns which of them ("1 2 ...") were left out because the claim was gone.

local REMEMBERED = 900 -- seconds

local sender, number, messages, queues = unpack(cmsgpack.unpack(ARGV[1]))

-- What is remembered: the number, and which claims were gone.
local mark = key('sender', sender)
local seen = call('SET', mark, number, 'EX', REMEMBERED, 'GET')
if seen then
  local last = string.match(seen, '%d+')
  if tonumber(last) >= number then
    call('SET', mark, seen, 'EX', REMEMBERED)
    return tonumber(last) == number and string.sub(seen, #last + 2) or ''
  end
end

for _, queue in ipairs(queues) do
  call('SADD', QUEUES, queue)
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
if gone[1] then
  call('SET', mark, number .. ' ' .. table.concat(gone, ' '), 'EX', REMEMBERED)
end
return table.concat(gone, ' ')
