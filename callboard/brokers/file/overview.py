"""Questions about what is in the file. They read, and hold up nobody."""

# ruff: noqa: S608 - what is put into SQL is numbers of our own, so that statements are prepared once
from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable
from pathlib import Path

from callboard.brokers.driver import Location, QueueCounts, StoredMessage
from callboard.brokers.file import workers
from callboard.brokers.file.schema import NOBODY, first_id, last_id, microseconds, place_of, queue_of


def queues(connection: sqlite3.Connection) -> list[str]:
    """The names of all queues."""
    return [name for (name,) in connection.execute("SELECT name FROM queues ORDER BY name")]


def counts(
    connection: sqlite3.Connection, folder: Path, names: Iterable[str], now: float
) -> dict[str, QueueCounts]:
    """See `Driver.counts`. What is due counts as ready, though no worker has made it so yet."""
    numbers = {name: id_ for id_, name in connection.execute("SELECT id, name FROM queues")}
    claimed: dict[int, int] = {}
    for (id_,) in connection.execute(f"SELECT id FROM messages WHERE claim <> {NOBODY}"):
        claimed[queue_of(id_)] = claimed.get(queue_of(id_), 0) + 1
    consuming = _consumers(connection, folder)
    found: dict[str, QueueCounts] = {}
    for name in names:
        found[name] = count = QueueCounts(consumers=consuming.get(name, 0))
        number = numbers.get(name)
        count.oldest = 0.0
        if number is None:
            continue
        messages = _one(
            connection,
            "SELECT count(*) FROM messages WHERE id BETWEEN ? AND ?",
            first_id(number),
            last_id(number),
        )
        due = _one(
            connection,
            "SELECT count(*) FROM delayed WHERE queue = ? AND due <= ?",
            number,
            microseconds(now),
        )
        later = _one(
            connection, "SELECT count(*) FROM delayed WHERE queue = ? AND due > ?", number, microseconds(now)
        )
        count.claimed = claimed.get(number, 0)
        count.ready = messages - count.claimed + due
        count.delayed = later
        if count.ready > 0:
            count.oldest = max(0.0, now - _ready_since(connection, number, now))
    return found


def _ready_since(connection: sqlite3.Connection, queue: int, now: float) -> float:
    """Since when the first message of a queue that nobody has claimed could be."""
    waiting, due = connection.execute(
        f"SELECT (SELECT min(id) FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY}),"
        "(SELECT min(due) FROM delayed WHERE queue = ? AND due <= ?)",
        (first_id(queue), last_id(queue), queue, microseconds(now)),
    ).fetchone()
    times = [place_of(waiting)] if waiting is not None else []
    times += [due] if due is not None else []
    return min(times) / 1_000_000 if times else now


def _one(connection: sqlite3.Connection, sql: str, *parameters: int) -> int:
    number: int = connection.execute(sql, parameters).fetchone()[0]
    return number


def _consumers(connection: sqlite3.Connection, folder: Path) -> dict[str, int]:
    """How many workers that live take from each queue."""
    found: dict[str, int] = {}
    for number, worker, listed in connection.execute("SELECT number, name, queues FROM workers"):
        if workers.is_free(folder, number, worker):
            continue
        for queue in json.loads(listed):
            found[queue] = found.get(queue, 0) + 1
    return found


def peek(connection: sqlite3.Connection, name: str, limit: int) -> list[StoredMessage]:
    """The first messages of a queue that nobody has claimed."""
    row = connection.execute("SELECT id FROM queues WHERE name = ?", (name,)).fetchone()
    if row is None:
        return []
    rows = connection.execute(
        f"SELECT headers, body FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY} ORDER BY id LIMIT ?",
        (first_id(row[0]), last_id(row[0]), limit),
    )
    return [StoredMessage(name, body, headers) for headers, body in rows]


def locate(connection: sqlite3.Connection, job_id: str) -> Location | None:
    """Where a job is. There is no index of ids, because every send would pay for it.

    An id that holds its time (UUIDv7) is sought first where jobs of that time lie; else everything is
    read, at some 5 million messages a second.
    """
    names = dict(connection.execute("SELECT id, name FROM queues").fetchall())
    row = (
        _near_its_time(connection, job_id, names)
        or connection.execute("SELECT id, claim FROM messages WHERE job_id = ?", (job_id,)).fetchone()
    )
    if row is not None:
        owner = connection.execute("SELECT name FROM workers WHERE number = ?", (row[1],)).fetchone()
        return Location(names[queue_of(row[0])], owner[0] if owner else None)
    row = connection.execute("SELECT queue, due FROM delayed WHERE job_id = ?", (job_id,)).fetchone()
    return Location(names[row[0]], due=row[1] / 1_000_000) if row is not None else None


def _near_its_time(
    connection: sqlite3.Connection, job_id: str, queues: Iterable[int]
) -> tuple[int, int] | None:
    try:
        made = uuid.UUID(job_id)
    except ValueError:
        return None
    if made.version != 7:
        return None
    since = (made.int >> 80) * 1000 - 1_000_000
    for queue in queues:
        row: tuple[int, int] | None = connection.execute(
            "SELECT id, claim FROM messages WHERE id BETWEEN ? AND ? AND job_id = ?",
            (first_id(queue) + since, first_id(queue) + since + 11_000_000, job_id),
        ).fetchone()
        if row is not None:
            return row
    return None
