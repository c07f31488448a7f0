"""The store in one SQLite file, for the processes of one host; or in memory, for the threads of one process.

What a power loss may undo: the last moments of records, counters, heartbeats, results, renewed or
returned keys, never half a change, and never claims of keys, cancellations, pauses, numbers and the
audit, which are on the disk when the call returns.
"""

# ruff: noqa: S608 - columns and tables are constants of this package, every value is bound
from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing, contextmanager
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from callboard.states import State
from callboard.store.base import (
    TICKS_KEPT,
    AuditEntry,
    Change,
    Control,
    Heartbeat,
    Page,
    Query,
    Record,
    ScheduleState,
    Store,
    Tick,
)
from callboard.store.places import Places
from callboard.store.slots import Slots
from callboard.store.sqlite import schedules
from callboard.store.sqlite.database import Database
from callboard.store.sqlite.records import Batch, OutOfOrder
from callboard.store.sqlite.search import count_by_state, partitions, read_record, search_records
from callboard.store.takeable import mended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

L = TypeVar("L", Slots, Places)
T = TypeVar("T")

_CANCELLED_FOR = 400 * 86_400.0  # longer than any delay
_HEARTBEAT_KEPT = 86_400.0
_ENDED = tuple(state.value for state in State if state.is_end and state is not State.DEAD)
_REMOVED_AT_ONCE = 500
_SWEPT_EVERY = 60.0
_SWEPT_AT_ONCE = 1000

_UNTAKEABLE = (UnicodeEncodeError, OverflowError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


class SQLiteStore(Store):
    """A store in one SQLite file, opened on first use.

    Parameters:
        path: The file; its folder is made if need be. `:memory:` keeps everything in this process.
        clock: Seconds since the epoch; what times to live are measured with.
        patience: Seconds to wait for other writers, before `StoreUnavailable`.
    """

    def __init__(
        self, path: Path | str, *, clock: Callable[[], float] = time.time, patience: float = 5.0
    ) -> None:
        self.path = None if str(path) == ":memory:" else Path(path).absolute()
        self._clock = clock
        self._database = Database(self.path, patience=patience)
        self._swept = 0.0

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path or ':memory:')!r})"

    # -- records ---------------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        try:
            self._write(Batch(changes))
        except _UNTAKEABLE:
            self._write(Batch([mended(change, bits=63) for change in changes]))

    def _write(self, batch: Batch) -> None:
        try:
            with self._database.writing() as connection:
                batch.write(connection)
        except OutOfOrder:
            with self._database.writing() as connection:
                batch.write_exactly(connection)

    def report_dropped(self, count: int, *, since: float, until: float) -> None:
        with self._database.writing() as connection:
            for name, value, kept in (
                ("records.dropped", count, "value + excluded.value"),
                ("records.dropped_since", int(since), "min(value, excluded.value)"),
                ("records.dropped_until", int(until), "max(value, excluded.value)"),
            ):
                connection.execute(
                    f"INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = {kept}",
                    (name, value),
                )

    def get(self, job_id: str) -> Record | None:
        with self._database.reading() as connection:
            return read_record(connection, job_id)

    def search(self, query: Query) -> Page:
        with self._database.reading() as connection:
            return search_records(connection, query)

    def count_by_state(self, *, category: str | None = None) -> dict[State, int]:
        with self._database.reading() as connection:
            return count_by_state(connection, category)

    def remove_ended(self, *, before: float, limit: int = 10_000) -> int:
        removed = 0
        while removed < limit:  # in pieces, so that other writers get their turns
            wanted = min(limit - removed, _REMOVED_AT_ONCE)
            with self._database.reading() as connection:
                numbers = _ended_before(connection, before, wanted)
            if numbers:
                with self._database.writing() as connection:
                    removed += _remove(connection, numbers)
            if len(numbers) < wanted:
                break
        return removed

    # -- control ---------------------------------------------------------------------------------------

    def control(self, *, known_version: int = -1) -> Control | None:
        with self._database.reading() as connection:
            (version,) = connection.execute("SELECT version FROM control").fetchone()
            if version == known_version:
                return None
            paused = connection.execute("SELECT queue FROM paused").fetchall()
            cancelled = connection.execute(
                "SELECT job_id, at FROM cancelled WHERE at > ?", (self._clock() - _CANCELLED_FOR,)
            ).fetchall()
        return Control(
            version=version, paused=frozenset(queue for (queue,) in paused), cancelled=dict(cancelled)
        )

    def pause(self, queue: str) -> None:
        self._ask("INSERT OR IGNORE INTO paused VALUES (?)", queue)

    def resume(self, queue: str) -> None:
        self._ask("DELETE FROM paused WHERE queue = ?", queue)

    def cancel(self, job_id: str, *, at: float) -> None:
        self._ask("INSERT OR IGNORE INTO cancelled VALUES (?, ?)", job_id, at)

    def forget_cancel(self, job_id: str) -> None:
        if self.is_cancelled(job_id):  # for nearly every job there is nothing to forget
            self._ask("DELETE FROM cancelled WHERE job_id = ?", job_id)

    def is_cancelled(self, job_id: str) -> bool:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT 1 FROM cancelled WHERE job_id = ? AND at > ?",
                (job_id, self._clock() - _CANCELLED_FOR),
            ).fetchone()
        return found is not None

    def _ask(self, statement: str, *values: Any) -> None:
        with self._database.writing(durable=True) as connection:
            expired = connection.execute(
                "DELETE FROM cancelled WHERE at <= ?", (self._clock() - _CANCELLED_FOR,)
            ).rowcount
            if connection.execute(statement, values).rowcount or expired:
                connection.execute("UPDATE control SET version = version + 1")

    # -- keys ------------------------------------------------------------------------------------------

    def claim_key(self, key: str, owner: str, *, ttl: float, durable: bool = True) -> str:
        now = self._clock()
        with self._database.writing(durable=durable) as connection:
            self._sweep(connection, now)
            connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET owner = excluded.owner, expires_at = excluded.expires_at"
                " WHERE expires_at <= ? OR owner = excluded.owner",
                (key, owner, now + ttl, now),
            )
            (holder,) = connection.execute("SELECT owner FROM keys WHERE key = ?", (key,)).fetchone()
        return str(holder)

    def release_key(self, key: str, owner: str) -> bool:
        with self._database.writing() as connection:
            return (
                connection.execute(
                    "DELETE FROM keys WHERE key = ? AND owner = ? AND expires_at > ?",
                    (key, owner, self._clock()),
                ).rowcount
                > 0
            )

    def key_owner(self, key: str) -> str | None:
        found = self._living("SELECT owner FROM keys", key)
        return str(found) if found is not None else None

    # -- counters --------------------------------------------------------------------------------------

    def add(self, counter: str, n: int = 1) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (counter, n),
            )

    def counters(self, prefix: str = "") -> dict[str, int]:
        with self._database.reading() as connection:
            return dict(
                connection.execute(
                    "SELECT name, value FROM counters WHERE substr(name, 1, length(?)) = ? ORDER BY name",
                    (prefix, prefix),
                ).fetchall()
            )

    # -- numbers ---------------------------------------------------------------------------------------

    def set_number(self, key: str, value: int, *, ttl: float) -> bool:
        now = self._clock()
        with self._database.writing(durable=True) as connection:
            self._sweep(connection, now)
            return (
                connection.execute(
                    "INSERT INTO numbers VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                    " SET value = excluded.value, expires_at = excluded.expires_at WHERE expires_at <= ?",
                    (key, value, now + ttl, now),
                ).rowcount
                > 0
            )

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
        now = self._clock()
        with self._database.writing(durable=True) as connection:
            self._sweep(connection, now)
            value = _number(connection, key, now) + by
            total = value + sum(_number(connection, other, now) for other in set(sum_with) - {key})
            if (least is not None and value < least) or (most is not None and max(value, total) > most):
                return False
            connection.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?, ?)", (key, value, now + ttl))
            return True

    def has_number(self, key: str) -> bool:
        return self._living("SELECT value FROM numbers", key) is not None

    # -- limits ----------------------------------------------------------------------------------------

    def reserve(self, key: str, *, every: float, burst: int, came_back: bool) -> float:
        with self._limit(f"slots:{key}", Slots) as (slots, now):
            return slots.reserve(now, every=every, burst=burst, came_back=came_back)

    def enter(self, key: str, job_id: str, *, places: int, ttl: float, came_back: bool) -> tuple[float, int]:
        with self._limit(f"places:{key}", Places) as (known, now):
            return known.enter(now, job_id, places=places, ttl=ttl, came_back=came_back)

    def stay(self, key: str, job_id: str, *, ttl: float) -> None:
        with self._limit(f"places:{key}", Places) as (known, now):
            known.stay(now, job_id, ttl=ttl)

    def leave(self, key: str, job_id: str) -> None:
        with self._limit(f"places:{key}", Places) as (known, now):
            known.leave(now, job_id)

    @contextmanager
    def _limit(self, key: str, kind: type[L]) -> Iterator[tuple[L, float]]:
        """What is known of a limit, to be changed, and the moment."""
        now = self._clock()
        with self._database.writing() as connection:
            self._sweep(connection, now)
            found = connection.execute(
                "SELECT data FROM limits WHERE key = ? AND expires_at > ?", (key, now)
            ).fetchone()
            known = msgspec.json.decode(found[0], type=kind) if found else kind()
            yield known, now
            connection.execute(
                "INSERT OR REPLACE INTO limits VALUES (?, ?, ?)",
                (key, msgspec.json.encode(known), now + known.ttl(now)),
            )

    # -- heartbeats ------------------------------------------------------------------------------------

    def beat(self, heartbeat: Heartbeat) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO heartbeats VALUES (?, ?, ?)",
                (heartbeat.worker, heartbeat.at, msgspec.json.encode(heartbeat).decode()),
            )
            connection.execute("DELETE FROM heartbeats WHERE at < ?", (heartbeat.at - _HEARTBEAT_KEPT,))

    def stopped(self, worker: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM heartbeats WHERE worker = ?", (worker,))

    def workers(self, *, alive_within: float = 15.0) -> list[Heartbeat]:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT data FROM heartbeats WHERE at >= ? ORDER BY worker", (self._clock() - alive_within,)
            ).fetchall()
        return [msgspec.json.decode(data, type=Heartbeat) for (data,) in found]

    # -- audit -----------------------------------------------------------------------------------------

    def audit(self, entry: AuditEntry) -> None:
        with self._database.writing(durable=True) as connection:
            connection.execute(
                "INSERT INTO audit (at, actor, action, target, count, details) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    entry.at,
                    entry.actor,
                    entry.action,
                    entry.target,
                    entry.count,
                    json.dumps(dict(entry.details), default=str),
                ),
            )

    def audit_log(self, *, limit: int = 100, before: float | None = None) -> list[AuditEntry]:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT at, actor, action, target, count, details FROM audit WHERE at < ?"
                " ORDER BY at DESC, id DESC LIMIT ?",
                (float("inf") if before is None else before, limit),
            ).fetchall()
        return [
            AuditEntry(
                at=at, actor=actor, action=action, target=target, count=count, details=json.loads(details)
            )
            for at, actor, action, target, count, details in found
        ]

    # -- schedules ---------------------------------------------------------------------------------------

    def begin_schedule(self, name: str, *, spec: str, until: float) -> None:
        with self._database.writing(durable=True) as connection:
            schedules.begin(connection, name, spec, until)

    def pause_schedule(self, name: str, *, at: float | None, by: str = "") -> None:
        with self._database.writing(durable=True) as connection:
            schedules.pause(connection, name, at, by)

    def schedules(self) -> dict[str, ScheduleState]:
        with self._database.reading() as connection:
            return schedules.read(connection)

    def add_tick(self, tick: Tick, *, until: float | None = None) -> bool:
        with self._database.writing(durable=True) as connection:
            return schedules.add_tick(connection, tick, TICKS_KEPT, until)

    def ticks(self, schedule: str, *, limit: int = 100) -> list[Tick]:
        with self._database.reading() as connection:
            return schedules.ticks(connection, schedule, limit)

    # -- results ---------------------------------------------------------------------------------------

    def put_result(self, key: str, value: bytes, *, ttl: float) -> None:
        now = self._clock()
        with self._database.writing() as connection:
            self._sweep(connection, now)
            connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, value, now + ttl))

    def get_result(self, key: str) -> bytes | None:
        found = self._living("SELECT value FROM results", key)
        return bytes(found) if found is not None else None

    def remove_result(self, key: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM results WHERE key = ?", (key,))

    # -- life ------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._database.close()

    def _living(self, select: str, key: str) -> Any:
        """The one value that a key has now, in a table where keys expire."""
        with self._database.reading() as connection:
            found = connection.execute(
                f"{select} WHERE key = ? AND expires_at > ?", (key, self._clock())
            ).fetchone()
        return found[0] if found else None

    def _sweep(self, connection: sqlite3.Connection, now: float) -> None:
        """Now and then, forget what has expired."""
        if abs(now - self._swept) < _SWEPT_EVERY:
            return
        self._swept = now
        for table in ("keys", "numbers", "results", "limits"):
            connection.execute(
                f"DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE expires_at <= ? LIMIT ?)",
                (now, _SWEPT_AT_ONCE),
            )


def _number(connection: sqlite3.Connection, key: str, now: float) -> int:
    found = connection.execute(
        "SELECT value FROM numbers WHERE key = ? AND expires_at > ?", (key, now)
    ).fetchone()
    return found[0] if found else 0


def _ended_before(connection: sqlite3.Connection, before: float, limit: int) -> list[int]:
    """The numbers of records that ended before a moment, those of the oldest jobs first."""
    with ExitStack() as cursors:
        streams = [
            cursors.enter_context(
                closing(
                    connection.execute(
                        "SELECT born, seq FROM records WHERE actor = ? AND category = ? AND queue = ? AND state = ?"
                        " AND born < ? AND coalesce(finished_at, updated_at) < ? ORDER BY born, seq",
                        (*partition, before, before),
                    )
                )
            )
            for partition in list(partitions(connection))
            if partition[-1] in _ENDED
        ]
        return [seq for _, seq in islice(merge(*streams), limit)]


def _remove(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    """Forget records, except for those that were replayed meanwhile."""
    ended, states = _one_of("state", _ENDED)
    these, numbers = _one_of("seq", numbers)
    found = connection.execute(
        f"SELECT seq, born, tags FROM records WHERE {these} AND {ended}", (*numbers, *states)
    ).fetchall()
    these, numbers = _one_of("seq", [number for number, _, _ in found])
    connection.execute(f"DELETE FROM records WHERE {these}", numbers)
    connection.execute(f"DELETE FROM events WHERE {these}", numbers)
    connection.executemany(
        "DELETE FROM tags WHERE tag = ? AND born = ? AND seq = ?",
        [(tag, born, number) for number, born, tags in found if tags for tag in json.loads(tags)],
    )
    return len(found)


def _one_of(column: str, values: Sequence[T]) -> tuple[str, Sequence[T]]:
    return f"{column} IN ({','.join('?' * len(values))})", values
