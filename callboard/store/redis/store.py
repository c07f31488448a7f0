"""The store itself: what is asked of it, put to Redis."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import msgspec

from callboard.redis import address
from callboard.redis.bell import Bell
from callboard.redis.health import Health
from callboard.redis.link import Link, base_of
from callboard.redis.outage import Refused, Unreachable
from callboard.states import State
from callboard.store.base import (
    TICKS_KEPT,
    AuditEntry,
    Control,
    ControlBell,
    Heartbeat,
    ScheduleState,
    Store,
    Tick,
)
from callboard.store.redis.links import Links
from callboard.store.redis.records import BITS, STORY_LENGTH, pack_batch, unpack
from callboard.store.redis.scripts import script
from callboard.store.redis.search import count_by_state, search_records
from callboard.store.takeable import mended

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from callboard.store.base import Change, Page, Query, Record

_CANCELLED_FOR = 400 * 86_400.0  # longer than any delay
_HEARTBEAT_KEPT = 86_400.0
_AUDIT_KEPT = 100_000  # entries
_ENDED = {state.value: 1 for state in State if state.is_end and state is not State.DEAD}
_REMOVED_AT_ONCE = 250
_NUMBER = 16  # digits before an entry of the audit
_RINGS_UNTIL = 1.0  # seconds to subscribe in: whoever stops waits for that


class RedisStore(Store):
    """A store in Redis. Connects when it is first used.

    Parameters:
        url: See `callboard.redis.address`.
        namespace: What separates our keys from another app's.
        clock: Seconds since the epoch, for tests; what times to live are measured with, instead of Redis's own.
        patience: Seconds that a call may take, before `StoreUnavailable`.

    Raises:
        SettingsError: The URL can't be read.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "",
        clock: Callable[[], float] | None = None,
        patience: float = 5.0,
    ) -> None:
        self._address = address.parse(url, "store")
        self._namespace = namespace
        self._base = f"{base_of(namespace)}store:"
        self._clock = clock
        self._health = Health("what is known about jobs", expiring=True)
        self._links = Links(self._new_link, name="the store", patience=patience)

    def __repr__(self) -> str:
        return f"RedisStore({str(self._address)!r})"

    def _new_link(self) -> Link:
        return Link(self._address, self._namespace, "callboard:store", self._health, script)

    def _run(self, name: str, order: object, *contents: bytes, twice: bool = True) -> Any:
        return self._links.call(lambda link, until: link.run(name, order, contents, until=until), twice=twice)

    def _ask(self, *command: str | bytes | int, twice: bool = True) -> Any:
        return self._links.call(lambda link, until: link.ask(*command, until=until), twice=twice)

    @property
    def _now(self) -> float | bool:
        """The moment by the clock of a test, or False for Redis's own."""
        return False if self._clock is None else self._clock()

    # -- records ---------------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        try:
            batch = pack_batch(changes)
        except (UnicodeEncodeError, OverflowError, TypeError):
            batch = pack_batch([mended(change, bits=BITS) for change in changes])
        self._run("write", [STORY_LENGTH], *batch)

    def report_dropped(self, count: int, *, since: float, until: float) -> None:
        self._run("dropped", [count, int(since), int(until)], twice=False)

    def get(self, job_id: str) -> Record | None:
        found = self._ask("HGET", f"{self._base}records", _bytes(job_id))
        return None if found is None else unpack(job_id, found, story=True)

    def search(self, query: Query) -> Page:
        return search_records(self._run, query)

    def count_by_state(self, *, category: str | None = None) -> dict[State, int]:
        return count_by_state(self._run, category)

    def remove_ended(self, *, before: float, limit: int = 10_000) -> int:
        removed = 0
        place: tuple[float, str] = -math.inf, ""
        while removed < limit:  # in pieces, so that others get their turns
            wanted = min(limit - removed, _REMOVED_AT_ONCE)
            order = [[False, False, False, _ENDED], *place, before, wanted]
            gone, looked_at, job_id, born = self._run("remove", order)
            removed += gone
            if looked_at < wanted:
                break
            place = float(born), job_id.decode()
        return removed

    # -- control ---------------------------------------------------------------------------------------

    def control(self, *, known_version: int = -1) -> Control | None:
        version, *asked = self._run("control", [known_version, self._forgotten])
        if not asked:
            return None
        paused, cancelled = asked
        return Control(
            version=int(version),
            paused=frozenset(queue.decode() for queue in paused),
            cancelled={
                job_id.decode(): float(at) for job_id, at in zip(cancelled[::2], cancelled[1::2], strict=True)
            },
        )

    def control_bell(self) -> ControlBell:
        return _RedisControlBell(self._new_link(), f"{self._base}control")

    def pause(self, queue: str) -> None:
        self._request("pause", queue)

    def resume(self, queue: str) -> None:
        self._request("resume", queue)

    def cancel(self, job_id: str, *, at: float) -> None:
        self._request("cancel", job_id, at)

    def forget_cancel(self, job_id: str) -> None:
        self._request("forget", job_id)

    def is_cancelled(self, job_id: str) -> bool:
        at = self._ask("ZSCORE", f"{self._base}cancelled", _bytes(job_id))
        return at is not None and float(at) > self._forgotten

    def _request(self, what: str, whom: str, at: float = 0.0) -> None:
        self._run("ask", [what, whom, at, self._forgotten])

    @property
    def _forgotten(self) -> float:
        """When a cancellation was asked for that is forgotten by now."""
        return (self._clock or time.time)() - _CANCELLED_FOR

    # -- keys ------------------------------------------------------------------------------------------

    def claim_key(self, key: str, owner: str, *, ttl: float, durable: bool = True) -> str:
        holder: bytes = self._run("claim", [self._now, key, owner, ttl])
        return holder.decode()

    def release_key(self, key: str, owner: str) -> bool:
        return bool(self._run("release", [self._now, key, owner], twice=False))

    def key_owner(self, key: str) -> str | None:
        owner: bytes | None = self._run("value", [self._now, "key", key])
        return None if owner is None else owner.decode()

    # -- counters --------------------------------------------------------------------------------------

    def add(self, counter: str, n: int = 1) -> None:
        self._ask("HINCRBY", f"{self._base}counters", counter, n, twice=False)

    def counters(self, prefix: str = "") -> dict[str, int]:
        found = self._ask("HGETALL", f"{self._base}counters")
        counted = {name.decode(): int(value) for name, value in zip(found[::2], found[1::2], strict=True)}
        return {name: counted[name] for name in sorted(counted) if name.startswith(prefix)}

    # -- numbers ---------------------------------------------------------------------------------------

    def set_number(self, key: str, value: int, *, ttl: float) -> bool:
        return bool(self._run("keep", [self._now, "number", key, ttl, True], b"%d" % value, twice=False))

    def move_number(
        self,
        key: str,
        by: int,
        *,
        ttl: float,
        least: int | None = None,
        most: int | None = None,
        sum_with: Collection[str] = (),
    ) -> bool:
        bounds = [False if bound is None else bound for bound in (least, most)]
        others = sorted(set(sum_with) - {key})
        return bool(self._run("move", [self._now, key, by, ttl, *bounds, others], twice=False))

    def has_number(self, key: str) -> bool:
        return self._run("value", [self._now, "number", key]) is not None

    # -- limits ----------------------------------------------------------------------------------------

    def reserve(self, key: str, *, every: float, burst: int, came_back: bool) -> float:
        return float(self._run("reserve", [self._now, key, every, burst, came_back], twice=False))

    def enter(self, key: str, job_id: str, *, places: int, ttl: float, came_back: bool) -> tuple[float, int]:
        wait, before = self._run("place", [self._now, key, job_id, "enter", places, ttl, came_back])
        return float(wait), before

    def stay(self, key: str, job_id: str, *, ttl: float) -> None:
        self._run("place", [self._now, key, job_id, "stay", 0, ttl, False])

    def leave(self, key: str, job_id: str) -> None:
        self._run("place", [self._now, key, job_id, "leave", 0, 0, False])

    # -- heartbeats ------------------------------------------------------------------------------------

    def beat(self, heartbeat: Heartbeat) -> None:
        self._run("beat", [self._now, heartbeat.worker, _HEARTBEAT_KEPT], msgspec.json.encode(heartbeat))

    def stopped(self, worker: str) -> None:
        self._run("stopped", [worker])

    def workers(self, *, alive_within: float = 15.0) -> list[Heartbeat]:
        said = self._run("workers", [self._now, alive_within])
        alive = [msgspec.json.decode(data, type=Heartbeat) for data in said]
        return sorted(alive, key=lambda heartbeat: heartbeat.worker)

    # -- audit -----------------------------------------------------------------------------------------

    def audit(self, entry: AuditEntry) -> None:
        data = {
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "target": entry.target,
            "count": entry.count,
            "details": dict(entry.details),
        }
        written = json.dumps(data, default=str).encode()
        self._run("audit", [entry.at, _AUDIT_KEPT], written, twice=False)

    def audit_log(self, *, limit: int = 100, before: float | None = None) -> list[AuditEntry]:
        newest = "+inf" if before is None else f"({before!r}"
        found = self._ask("ZREVRANGEBYSCORE", f"{self._base}audit", newest, "-inf", "LIMIT", 0, limit)
        return [AuditEntry(**json.loads(entry[_NUMBER:])) for entry in found]

    # -- schedules ---------------------------------------------------------------------------------------

    def begin_schedule(self, name: str, *, spec: str, until: float) -> None:
        self._tell_schedule(name, spec=spec, until=repr(until))

    def pause_schedule(self, name: str, *, at: float | None, by: str = "") -> None:
        self._tell_schedule(name, paused_at="" if at is None else repr(at), paused_by=by)

    def _tell_schedule(self, name: str, **told: str) -> None:
        fields = [_bytes(text) for field, value in told.items() for text in (f"{name}\n{field}", value)]
        self._ask("HSET", f"{self._base}schedules", *fields)

    def schedules(self) -> dict[str, ScheduleState]:
        told = self._ask("HGETALL", f"{self._base}schedules")
        found: dict[str, ScheduleState] = {}
        for key, value in sorted(zip(told[::2], told[1::2], strict=True)):
            name, _, field = key.decode().rpartition("\n")
            state = found.setdefault(name, ScheduleState(name))
            text = value.decode()
            setattr(state, field, text if field in ("spec", "paused_by") else float(text) if text else None)
        return found

    def add_tick(self, tick: Tick, *, until: float | None = None) -> bool:
        order = [tick.schedule, tick.due, TICKS_KEPT, False if until is None else until]
        return bool(self._run("tick", order, msgspec.json.encode(tick)))

    def ticks(self, schedule: str, *, limit: int = 100) -> list[Tick]:
        found = self._ask("ZREVRANGE", f"{self._base}ticks:{schedule}", 0, limit - 1)
        return [msgspec.json.decode(data, type=Tick) for data in found]

    # -- results ---------------------------------------------------------------------------------------

    def put_result(self, key: str, value: bytes, *, ttl: float) -> None:
        self._run("keep", [self._now, "result", key, ttl, False], value)

    def get_result(self, key: str) -> bytes | None:
        found: bytes | None = self._run("value", [self._now, "result", key])
        return found

    def remove_result(self, key: str) -> None:
        self._ask("DEL", f"{self._base}result:{key}")

    # -- life ------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._links.close()


class _RedisControlBell(ControlBell):
    """A subscription to the channel on which `lua/ask.lua` tells of changes."""

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        self._bell = Bell(link)
        self._channel = channel
        self._not_before = 0.0

    def wait(self, timeout: float) -> None:
        now = time.monotonic()
        until = now + timeout
        try:
            if now >= self._not_before:
                self._bell.listen(self._channel, now + min(timeout, _RINGS_UNTIL))
        except (Unreachable, Refused):  # whoever asks for the control itself will tell
            self._not_before = time.monotonic() + self._link.pause()
        try:
            self._bell.wait(until - time.monotonic())
        except Unreachable:
            self._not_before = time.monotonic() + self._link.pause()

    def ring(self) -> None:
        self._bell.ring()

    def close(self) -> None:
        self._bell.close()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
