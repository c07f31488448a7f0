-- Somebody has seen a process end that may have been a worker: what it held is ready again, unless it still listens.
--
-- ARGV[1]: {what the worker's name begins with}
-- Returns {how many still listen, the name of one found dead, how many messages, ...}.

local beginning = unpack(cmsgpack.unpack(ARGV[1]))

local found = { 0 }
for _, worker in ipairs(call('ZRANGE', WORKERS, 0, -1)) do
  if string.sub(worker, 1, #beginning) == beginning then
    if call('SPUBLISH', key('bell', worker), '?') > 0 then
      found[1] = found[1] + 1
    else
      found[#found + 1] = worker
      found[#found + 1] = rescue(worker)
    end
  end
end
return found
