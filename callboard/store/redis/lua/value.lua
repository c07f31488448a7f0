-- A value that lives: {now, kind, name}

local now, kind, name = unpack(asked)
return living(kind, name, clock(now))
