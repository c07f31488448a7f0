-- Append to the audit: {when, how many entries are kept}; ARGV[2] is the entry. Its number keeps those of one
-- moment in their sequence.

local at, kept = unpack(asked)
local number = call('INCR', base .. 'audited')
call('ZADD', base .. 'audit', at, string.format('%016d', number) .. ARGV[2])
call('ZREMRANGEBYRANK', base .. 'audit', 0, -kept - 1)
