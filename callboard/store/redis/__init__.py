"""A store in Redis 7 or Valkey, for workers on any number of hosts: what `CALLBOARD_STORE_URL=redis://...` gives.

It may be the same server, and the same database, that the Redis driver keeps messages in. Every change is one Lua
script (`lua/`), so that nobody sees half of it:

    callboard:{shop}:store:records        hash: a job's id -> its record, see `records.py`
    callboard:{shop}:store:in:KIND        sorted set: the ids of one actor, category, queue and state, by age
    callboard:{shop}:store:partitions     set: the kinds that there are of these
    callboard:{shop}:store:tag:TAG        sorted set: the ids of jobs with a tag, by age
    callboard:{shop}:store:error:PRINT    sorted set: the ids of jobs with an error's fingerprint, by age
    callboard:{shop}:store:paused         set: queues
    callboard:{shop}:store:cancelled      sorted set: ids, by when that was asked for
    callboard:{shop}:store:version        string: of these two; on the channel `control` workers are told of changes
    callboard:{shop}:store:key:KEY        string: when a claim is over, and whose it is; so `number:` and `result:`
    callboard:{shop}:store:slots:KEY      string: the times of a rate limit, see `callboard/store/slots.py`
    callboard:{shop}:store:places:KEY     string: who has them, see `callboard/store/places.py`
    callboard:{shop}:store:counters       hash
    callboard:{shop}:store:workers        hash: signs of life; `beats` says how old they are
    callboard:{shop}:store:audit          sorted set: entries, by time
    callboard:{shop}:store:schedules      hash: what is known of each; a field's name begins with the schedule's
    callboard:{shop}:store:ticks:NAME     sorted set: what became of a schedule's ticks, by when they were due

`{shop}` is the namespace, `{.}` without one. The braces are a hash tag: a cluster keeps all of a namespace in one slot.

What is durable is Redis's affair: with `appendonly yes`, a crash loses the last second, or nothing if
`appendfsync always` is set. Redis must not evict keys: `maxmemory-policy noeviction`.
"""

from callboard.store.redis.store import RedisStore

__all__ = ["RedisStore"]
