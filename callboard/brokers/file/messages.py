"""What is done with messages, in SQL. Every function runs inside a transaction of the caller's."""

# ruff: noqa: S608 - what is put into SQL is numbers of our own, so that statements are prepared once
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from callboard.brokers.driver import Outgoing
from callboard.brokers.file.schema import (
    LAST_PLACE,
    NOBODY,
    PLACE_BITS,
    first_id,
    last_id,
    microseconds,
    place_of,
    queue_of,
)
from callboard.queues import priority_of

Row = tuple[int, int, bytes, bytes]  # id, redelivered, headers, body

_PROMOTED_AT_ONCE = 500  # of one queue, so that nobody waits long for the transaction


def put(
    connection: sqlite3.Connection, numbers: Mapping[str, int], messages: Sequence[Outgoing], now: float
) -> None:
    """Add messages: those that are due at the end of their queues, the others to the delayed ones."""
    ready: dict[int, list[tuple[str, bytes, bytes]]] = {}
    for message in messages:
        queue = numbers[message.queue]
        if message.due is None or message.due <= now:
            ready.setdefault(queue, []).append((message.job_id, message.headers, message.body))
        else:
            _put_delayed(connection, queue, message, microseconds(message.due))
    for queue, rows in ready.items():
        _append(connection, queue, rows, now)


def _append(
    connection: sqlite3.Connection, queue: int, rows: Sequence[tuple[str, bytes, bytes]], now: float
) -> None:
    first = first_id(queue)
    # One more than the last where the clock is behind it: it stepped back, or a bulk ran ahead of it.
    last = f"(SELECT max(id) FROM messages WHERE id BETWEEN {first} AND {last_id(queue)})"
    if len(rows) == 1:
        connection.execute(
            f"INSERT INTO messages VALUES (max(?1, coalesce({last} + 1, 0)), {NOBODY}, 0, ?2, ?3, ?4)",
            (first + microseconds(now), *rows[0]),
        )
        return
    start = max(first + microseconds(now), (connection.execute(f"SELECT {last}").fetchone()[0] or 0) + 1)
    connection.executemany(
        f"INSERT INTO messages VALUES (?, {NOBODY}, 0, ?, ?, ?)",
        [(id_, *row) for id_, row in enumerate(rows, start)],
    )


def _put_delayed(connection: sqlite3.Connection, queue: int, message: Outgoing, due: int) -> None:
    connection.execute(
        "INSERT INTO delayed VALUES (?1, ?2,"
        " (SELECT coalesce(max(serial) + 1, 0) FROM delayed WHERE queue = ?1 AND due = ?2), ?3, ?4, ?5)",
        (queue, due, message.job_id, message.headers, message.body),
    )


def let_go(connection: sqlite3.Connection, worker: int, ids: Iterable[int]) -> None:
    """Delete messages that a worker is done with. Those it doesn't hold stay."""
    connection.executemany("DELETE FROM messages WHERE id = ? AND claim = ?", [(id_, worker) for id_ in ids])


def give_back(connection: sqlite3.Connection, worker: int, ids: Iterable[int]) -> None:
    """Let others have messages that a worker holds."""
    connection.executemany(
        f"UPDATE messages SET claim = {NOBODY} WHERE id = ? AND claim = ?", [(id_, worker) for id_ in ids]
    )


def let_go_of_one(connection: sqlite3.Connection, worker: int, id_: int) -> bool:
    """Delete a message that a worker (or nobody) has; False if it is another's, or gone."""
    sql = "DELETE FROM messages WHERE id = ? AND claim = ?"
    return connection.execute(sql, (id_, worker)).rowcount == 1


def purge(connection: sqlite3.Connection, queue: int, now: float, limit: int) -> int:
    """Drop messages that nobody has, and delayed ones, up to `limit` of each. Returns how many went.

    What became ready after `now` stays.
    """
    ready = connection.execute(
        "DELETE FROM messages WHERE id IN"
        f" (SELECT id FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY} ORDER BY id LIMIT ?)",
        (first_id(queue), first_id(queue) + microseconds(now), limit),
    ).rowcount
    delayed = connection.execute(
        "DELETE FROM delayed WHERE (queue, due, serial) IN"
        " (SELECT queue, due, serial FROM delayed WHERE queue = ? LIMIT ?)",
        (queue, limit),
    ).rowcount
    return ready + delayed


def rescue(connection: sqlite3.Connection, worker: int) -> list[int]:
    """Let others have all that a dead worker held. Returns the queues."""
    rows = connection.execute(
        f"SELECT id FROM messages WHERE claim = ? AND claim <> {NOBODY}", (worker,)
    ).fetchall()
    connection.executemany(f"UPDATE messages SET claim = {NOBODY}, redelivered = 1 WHERE id = ?", rows)
    return sorted({queue_of(id_) for (id_,) in rows})


@dataclass(slots=True)
class Claims:
    """What a claim brought."""

    rows: list[Row] = field(default_factory=list)
    next_due: float | None = None  # of what isn't due yet; only if nothing was claimed


class Picker:
    """Chooses what a worker claims: by priority, then by age; of every eight the last by age alone."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        """Choose from these queues, given with their numbers."""
        self._numbers = list(numbers.values())
        tiers: dict[int, list[int]] = {}
        for name, number in numbers.items():
            tiers.setdefault(priority_of(name), []).append(number)
        self._tiers = [tiers[priority] for priority in sorted(tiers)]
        self._turn = 0
        listed = ", ".join(map(str, self._numbers)) or "NULL"
        self._ready_sql = (
            f"SELECT (SELECT id FROM messages WHERE id BETWEEN (queues.id << {PLACE_BITS})"
            f" AND (queues.id << {PLACE_BITS} | {LAST_PLACE}) AND claim = {NOBODY} ORDER BY id LIMIT 1) AS head"
            f" FROM queues WHERE id IN ({listed}) AND head IS NOT NULL"
        )
        self._due_sql = (
            f"SELECT id, (SELECT due FROM delayed WHERE queue = queues.id ORDER BY due LIMIT 1) AS head"
            f" FROM queues WHERE id IN ({listed}) AND head IS NOT NULL"
        )

    def claim(self, connection: sqlite3.Connection, worker: int, limit: int, now: float) -> Claims:
        """Claim up to `limit` messages."""
        next_due = self._promote(connection, now)
        rows = self._pick(connection, limit) if limit > 0 else []
        if not rows:
            return Claims(next_due=next_due)
        connection.executemany(f"UPDATE messages SET claim = {worker} WHERE id = ?", [(r[0],) for r in rows])
        return Claims(rows)

    def _promote(self, connection: sqlite3.Connection, now: float) -> float | None:
        """Move what is due to the ends of the queues; returns when the next is due."""
        moment = microseconds(now)
        next_due: int | None = None
        for queue, due in connection.execute(self._due_sql).fetchall():
            if due <= moment:
                _promote(connection, queue, moment, now)
                due = moment  # there may be more
            if next_due is None or due < next_due:
                next_due = due
        return None if next_due is None else next_due / 1_000_000

    def _pick(self, connection: sqlite3.Connection, limit: int) -> list[Row]:
        heads = connection.execute(self._ready_sql).fetchall()
        waiting = {queue_of(id_) for (id_,) in heads}
        if not waiting:
            return []
        tiers = [part for tier in self._tiers if (part := [queue for queue in tier if queue in waiting])]
        lines = _Lines(connection)
        try:
            if len(waiting) == 1:
                rows = lines.take(tiers[0], limit)
                self._turn = (self._turn + len(rows)) % 8
                return rows
            return self._share(lines, tiers, limit)
        finally:
            lines.close()

    def _share(self, lines: _Lines, tiers: list[list[int]], limit: int) -> list[Row]:
        rows: list[Row] = []
        everything = [queue for tier in tiers for queue in tier]
        while len(rows) < limit and tiers:
            if self._turn == 7:
                found = lines.take(everything, 1)
                if not found:
                    break
            else:
                found = lines.take(tiers[0], min(7 - self._turn, limit - len(rows)))
                if not found:
                    del tiers[0]
            self._turn = (self._turn + len(found)) % 8
            rows += found
        return rows


class _Lines:
    """The messages that wait in some queues, read from the oldest on, as far as they are wanted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cursors: dict[int, sqlite3.Cursor] = {}
        self._heads: dict[int, Row | None] = {}

    def take(self, queues: list[int], limit: int) -> list[Row]:
        """The oldest of these queues together."""
        if len(queues) == 1:
            return self._take_of_one(queues[0], limit)
        rows: list[Row] = []
        while len(rows) < limit:
            oldest = min(
                (head for queue in queues if (head := self._head(queue)) is not None),
                key=_place,
                default=None,
            )
            if oldest is None:
                break
            rows.append(oldest)
            self._advance(queue_of(oldest[0]))
        return rows

    def _take_of_one(self, queue: int, limit: int) -> list[Row]:
        head = self._heads.pop(queue, None)
        rows = [] if head is None else [head]
        if len(rows) < limit:
            rows += self._cursor(queue).fetchmany(limit - len(rows))
        return rows

    def _head(self, queue: int) -> Row | None:
        if queue not in self._heads:
            self._advance(queue)
        return self._heads[queue]

    def _advance(self, queue: int) -> None:
        self._heads[queue] = self._cursor(queue).fetchone()

    def _cursor(self, queue: int) -> sqlite3.Cursor:
        cursor = self._cursors.get(queue)
        if cursor is None:
            # The number is part of the text, so that each queue has a prepared statement of its own.
            cursor = self._cursors[queue] = self._connection.execute(
                f"SELECT id, redelivered, headers, body FROM messages"
                f" WHERE id BETWEEN {first_id(queue)} AND {last_id(queue)} AND claim = {NOBODY} ORDER BY id"
            )
        return cursor

    def close(self) -> None:
        for cursor in self._cursors.values():
            cursor.close()


def _place(row: Row) -> int:
    return place_of(row[0])


def _promote(connection: sqlite3.Connection, queue: int, moment: int, now: float) -> None:
    rows = connection.execute(
        "SELECT due, serial, job_id, headers, body FROM delayed WHERE queue = ? AND due <= ?"
        " ORDER BY due, serial LIMIT ?",
        (queue, moment, _PROMOTED_AT_ONCE),
    ).fetchall()
    _append(connection, queue, [row[2:] for row in rows], now)
    last = rows[-1]
    connection.execute(
        "DELETE FROM delayed WHERE queue = ? AND (due, serial) <= (?, ?)", (queue, last[0], last[1])
    )
