"""What is done with messages, in SQL. Every function runs inside a transaction of the caller's."""

# ruff: noqa: S608 - what is put into SQL is numbers of our own, so that statements are prepared once
from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from callboard.brokers.driver import Outgoing
from callboard.brokers.file.schema import (
    NOBODY,
    PLACE_BITS,
    first_id,
    last_id,
    microseconds,
)

Row = tuple[int, int, bytes, bytes]  # id, redelivered, headers, body

_PROMOTED_AT_ONCE = 500  # of one queue, so that nobody waits long for the transaction


def put(
    connection: sqlite3.Connection, numbers: Mapping[str, int], messages: Sequence[Outgoing], now: float
) -> None:
    """Add messages: those that are due at the end of their queues, the others to the delayed ones."""
    if len(messages) == 1 and messages[0].due is None:
        (message,) = messages
        _append_one(connection, numbers[message.queue], message, now)
        return
    ready: dict[int, list[tuple[str, bytes, bytes]]] = {}
    for message in messages:
        queue = numbers[message.queue]
        if message.due is None or message.due <= now:
            ready.setdefault(queue, []).append((message.job_id, message.headers, message.body))
        else:
            _put_delayed(connection, queue, message, microseconds(message.due))
    for queue, rows in ready.items():
        _append(connection, queue, rows, now)


# One more than the last where the clock is behind it: it stepped back, or a bulk ran ahead of it.
_LAST = "SELECT max(id) FROM messages WHERE id BETWEEN ?2 AND ?3"
_APPEND = f"INSERT INTO messages VALUES (max(?1, coalesce(({_LAST}) + 1, 0)), {NOBODY}, 0, ?4, ?5, ?6)"

# In statements for many rows each, for the reason that is given at `_LISTED`.
_ROWS = (256, 32, 4, 1)
_APPEND_MANY = [
    (rows, f"INSERT INTO messages VALUES {', '.join([f'(?, {NOBODY}, 0, ?, ?, ?)'] * rows)}")
    for rows in _ROWS
]


def _append_one(connection: sqlite3.Connection, queue: int, message: Outgoing, now: float) -> None:
    first = first_id(queue)
    row = message.job_id, message.headers, message.body
    connection.execute(_APPEND, (first + microseconds(now), first, last_id(queue), *row))


def _append(
    connection: sqlite3.Connection, queue: int, rows: Sequence[tuple[str, bytes, bytes]], now: float
) -> None:
    id_ = max(first_id(queue) + microseconds(now), last(connection, queue) + 1)
    start = 0
    for count, statement in _APPEND_MANY:
        while len(rows) - start >= count:
            values: list[int | str | bytes] = []
            for row in rows[start : start + count]:
                values.append(id_)
                values += row
                id_ += 1
            connection.execute(statement, values)
            start += count


def _put_delayed(connection: sqlite3.Connection, queue: int, message: Outgoing, due: int) -> None:
    connection.execute(
        "INSERT INTO delayed VALUES (?, ?,"
        " (SELECT coalesce(max(serial) + 1, 0) FROM delayed WHERE queue = ? AND due = ?), ?, ?, ?)",
        (queue, due, queue, due, message.job_id, message.headers, message.body),
    )


# One statement for all of them: `executemany` lets go of the interpreter's lock at each, and has to win it back
# from the threads that run jobs.
_LISTED = "id IN (SELECT value FROM json_each(?))"


def _listed(ids: Iterable[int]) -> str:
    return json.dumps(list(ids))


def take(connection: sqlite3.Connection, worker: int, ids: Iterable[int]) -> None:
    """Give a worker messages that nobody has: of each queue those from the first to the last of these."""
    stretches: dict[int, tuple[int, int]] = {}
    for id_ in ids:
        queue = id_ >> PLACE_BITS
        stretches[queue] = stretches.get(queue, (id_,))[0], id_
    for stretch in stretches.values():
        connection.execute(
            f"UPDATE messages SET claim = {worker} WHERE id BETWEEN ? AND ? AND claim = {NOBODY}", stretch
        )


def let_go(connection: sqlite3.Connection, worker: int, ids: Iterable[int]) -> None:
    """Delete messages that a worker is done with. Those it doesn't hold stay."""
    connection.execute(f"DELETE FROM messages WHERE {_LISTED} AND claim = ?", (_listed(ids), worker))


def give_back(connection: sqlite3.Connection, worker: int, ids: Iterable[int]) -> None:
    """Let others have messages that a worker holds."""
    connection.execute(
        f"UPDATE messages SET claim = {NOBODY} WHERE {_LISTED} AND claim = ?", (_listed(ids), worker)
    )


def let_go_of_one(connection: sqlite3.Connection, worker: int, id_: int) -> bool:
    """Delete a message that a worker (or nobody) has; False if it is another's, or gone."""
    sql = "DELETE FROM messages WHERE id = ? AND claim = ?"
    return connection.execute(sql, (id_, worker)).rowcount == 1


def last(connection: sqlite3.Connection, queue: int) -> int:
    """The id of the last message of a queue, or something below all of them."""
    sql = "SELECT max(id) FROM messages WHERE id BETWEEN ? AND ?"
    id_: int | None = connection.execute(sql, (first_id(queue), last_id(queue))).fetchone()[0]
    return id_ or 0


def purge(connection: sqlite3.Connection, queue: int, until: int, limit: int) -> int:
    """Drop messages that nobody has, and delayed ones, up to `limit` of each. Returns how many went.

    What comes after the id `until` stays.
    """
    ready = connection.execute(
        "DELETE FROM messages WHERE id IN"
        f" (SELECT id FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY} ORDER BY id LIMIT ?)",
        (first_id(queue), until, limit),
    ).rowcount
    delayed = connection.execute(
        "DELETE FROM delayed WHERE (queue, due, serial) IN"
        " (SELECT queue, due, serial FROM delayed WHERE queue = ? LIMIT ?)",
        (queue, limit),
    ).rowcount
    return ready + delayed


def rescue(connection: sqlite3.Connection, worker: int) -> list[int]:
    """Let others have all that a dead worker held. Returns the messages' ids."""
    rows = connection.execute(
        f"SELECT id FROM messages WHERE claim = ? AND claim <> {NOBODY}", (worker,)
    ).fetchall()
    connection.executemany(f"UPDATE messages SET claim = {NOBODY}, redelivered = 1 WHERE id = ?", rows)
    return [id_ for (id_,) in rows]


def promote(connection: sqlite3.Connection, queue: int, moment: int, now: float) -> None:
    """Move what is due to the end of its queue, or the first part of it if that is much."""
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
