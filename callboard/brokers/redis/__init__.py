"""The Redis driver: messages wait in Redis 7 or Valkey, which needs no modules.

Every change is one Lua script (`lua/`), so that a message is in one place at any moment:

    callboard:{shop}:messages       hash: id -> the message. An id is the message's first place in line, too.
    callboard:{shop}:ready:QUEUE    sorted set: ids, by place: the microsecond at which they became ready
    callboard:{shop}:delayed:QUEUE  sorted set: ids, by due time
    callboard:{shop}:next           sorted set: the queues with delayed messages, by the first due time
    callboard:{shop}:workers        sorted set: who may hold claims, by when it was last heard
    callboard:{shop}:worker:NAME    hash: its queues, and the number of its connection
    callboard:{shop}:claims:NAME    hash: id -> its place and queue, of what the worker has claimed
    callboard:{shop}:idle           set: who waits to be rung for; idle:QUEUE says for which queues
    callboard:{shop}:sender:NAME    string: the last call of a process that sends, so that it may repeat it

`{shop}` is the namespace, `{.}` without one. The braces are a hash tag: a cluster keeps all of a namespace in
one slot, so a namespace is what can be spread over nodes, not a queue.

A claim is a message's move from its queue into its worker's hash, an ack deletes it there. A worker shows several
times within a lease that it lives. If it doesn't, and its connections have ended, others have its messages when the
lease is over: ten seconds, so that a killed worker's jobs run again within 13; at once if somebody saw its process
end, and has it buried. A worker whose connection stands may just be slow: it has two and a half leases. Whoever
was silent for longer than that, frozen or cut off, has lost its claims: its acks and moves are refused, and
`holds` says so.

How safe a confirmed message is, is Redis's affair. With `appendonly yes` and `appendfsync always` it is on the
disk when `put` returns; with `everysec`, a crash of the host or of Redis loses the last second; without an
append-only file, all since the last snapshot. Redis must not evict: `maxmemory-policy noeviction`.
"""

from callboard.brokers.redis.driver import RedisDriver

__all__ = ["RedisDriver"]
