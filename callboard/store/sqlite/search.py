"""Reading records: one, many by search, how many.

A search is a stream of places, newest first, that is read as far as the page needs. What streams there
are follows from one index, on kind (actor, category, queue), state and age: the kinds and states that
exist are walked through in it (a hundred actors: milliseconds), those that fit become one stream each,
and the streams are merged. So a page costs what it shows, with a million records too, whichever of the
four filters are set. Fingerprints and tags have indexes of their own.

What has no index, a text above all, is looked at record by record, and at so many a page at most; a page
may then come out short, with a `next` to go on.
"""

# ruff: noqa: S608 - columns and tables are constants of this package, every value is bound
from __future__ import annotations

import json
import struct
from contextlib import ExitStack, closing
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any

from callboard.states import State
from callboard.store.base import Event, Page, Record
from callboard.store.merge import FIELDS, KIND
from callboard.store.pages import LOOKED_AT, check, is_exact, no_cursor, read_cursor, write_cursor
from callboard.store.sqlite.records import STORY_LENGTH

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from callboard.store.base import Query

_CHUNK = 500

_COLUMNS = ("seq", "told", "job_id", "ord", "state", "updated_at", *FIELDS)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM records"
_PARTITION = (*KIND, "state")
_NEXT_PARTITION = (
    f"SELECT {', '.join(_PARTITION)} FROM records WHERE ({', '.join(_PARTITION)}, born) > (?, ?, ?, ?, 9e999)"
    f" ORDER BY {', '.join(_PARTITION)} LIMIT 1"
)
_BEYOND_ALL = (float("inf"), 0)

Place = tuple[float, int]  # when a record was new, and its number: what pages go by


def read_record(connection: sqlite3.Connection, job_id: str) -> Record | None:
    """A record with its story."""
    row = connection.execute(f"{_SELECT} WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        return None
    record = _record(row)
    record.events = _story(connection, seq=row[0], told=row[1])
    return record


def search_records(connection: sqlite3.Connection, query: Query) -> Page:
    """A page of records, without stories."""
    check(query)
    start = _read_cursor(query.after) if query.after is not None else _BEYOND_ALL
    found: list[tuple[Place, Record]] = []
    place: Place | None = None
    with ExitStack() as cursors:
        places = _places(connection, query, start, cursors)
        for _ in range(LOOKED_AT // _CHUNK):
            wanted = query.limit + 1 - len(found)
            chunk = list(islice(places, wanted if is_exact(query) else _CHUNK))
            if not chunk:
                place = None
                break
            place = chunk[-1]
            found += _matching(connection, query, chunk)
            if len(found) > query.limit:
                break
    if len(found) > query.limit:
        del found[query.limit :]
        place = found[-1][0]
    return Page(records=[record for _, record in found], next=_write_cursor(place) if place else None)


def count_by_state(connection: sqlite3.Connection, category: str | None) -> dict[State, int]:
    counts: dict[State, int] = {}
    for partition in partitions(connection):
        if category is None or partition[KIND.index("category")] == category:
            state = State(partition[-1])
            (count,) = connection.execute(
                f"SELECT count(*) FROM records WHERE {_equal(_PARTITION)}", partition
            ).fetchone()
            counts[state] = counts.get(state, 0) + count
    return counts


def partitions(connection: sqlite3.Connection) -> Iterator[tuple[str, ...]]:
    """The kinds and states that exist, as (actor, category, queue, state)."""
    # The row that comes after all of one partition's is the next one's first: one step in the index each.
    partition: tuple[str, ...] = ("", "", "", "")
    while following := connection.execute(_NEXT_PARTITION, partition).fetchone():
        yield following
        partition = following


# -- places ----------------------------------------------------------------------------------------------


def _places(
    connection: sqlite3.Connection, query: Query, start: Place, cursors: ExitStack
) -> Iterator[Place]:
    """Where the records lie that may fit, the newest first."""

    def stream(condition: str, values: Sequence[Any], table: str = "records") -> Iterator[Place]:
        bounds, limits = _bounds(query, start)
        sql = f"SELECT born, seq FROM {table} WHERE {condition} AND {bounds} ORDER BY born DESC, seq DESC"
        return cursors.enter_context(closing(connection.execute(sql, (*values, *limits))))

    if query.fingerprint is not None:
        return stream("fingerprint = ?", [query.fingerprint])
    if query.tags:
        return stream("tag = ?", [query.tags[0]], "tags")
    if not (query.actors or query.categories or query.queues or query.states):
        return stream("true", [])
    filters = (query.actors, query.categories, query.queues, query.states)
    streams = [
        stream(_equal(_PARTITION), partition)
        for partition in list(partitions(connection))
        if all(not wanted or value in wanted for value, wanted in zip(partition, filters, strict=True))
    ]
    return merge(*streams, reverse=True)


def _bounds(query: Query, start: Place) -> tuple[str, list[Any]]:
    # One upper bound, or SQLite might begin at the other one and walk. Numbers start at 1.
    if query.until is not None:
        start = min(start, (query.until, 0))
    if query.since is None:
        return "(born, seq) < (?, ?)", [*start]
    return "(born, seq) < (?, ?) AND born >= ?", [*start, query.since]


def _equal(columns: Sequence[str]) -> str:
    return " AND ".join(f"{column} = ?" for column in columns)


# -- records ---------------------------------------------------------------------------------------------


def _matching(
    connection: sqlite3.Connection, query: Query, places: Sequence[Place]
) -> Iterator[tuple[Place, Record]]:
    condition, values = ("true", []) if is_exact(query) else _condition(query)
    numbers = [seq for _, seq in places]
    rows = connection.execute(
        f"{_SELECT} WHERE seq IN ({','.join('?' * len(numbers))}) AND {condition}", (*numbers, *values)
    )
    by_number = {row[0]: row for row in rows}
    for place in places:
        if row := by_number.get(place[1]):
            yield place, _record(row)


def _condition(query: Query) -> tuple[str, list[Any]]:
    """All that is asked of a record, age excepted."""
    conditions = ["true"]
    values: list[Any] = []
    for column, wanted in (
        ("actor", query.actors),
        ("category", query.categories),
        ("queue", query.queues),
        ("state", query.states),
    ):
        if wanted:
            conditions.append(f"{column} IN ({','.join('?' * len(wanted))})")
            values += map(str, wanted)
    for tag in query.tags:
        conditions.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
        values.append(tag)
    if query.fingerprint is not None:
        conditions.append("fingerprint = ?")
        values.append(query.fingerprint)
    if query.text is not None:
        conditions.append(
            "(" + " OR ".join(f"{c} LIKE ? ESCAPE '!'" for c in ("payload", "error", "reason")) + ")"
        )
        values += [f"%{_escape(query.text)}%"] * 3
    return " AND ".join(conditions), values


def _escape(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _record(row: tuple[Any, ...]) -> Record:
    _, _, job_id, order, state, updated_at, *values = row
    known = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
    if "tags" in known:
        known["tags"] = tuple(json.loads(known["tags"]))
    return Record(job_id=job_id, order=order, state=State(state), updated_at=updated_at, **known)


def _story(connection: sqlite3.Connection, *, seq: int, told: int) -> tuple[Event, ...]:
    # The slots are a ring, and the next to be written is the oldest. Lines told late go where they belong.
    lines = connection.execute(
        f"SELECT at, state, attempt, worker, text FROM events WHERE seq = ?"
        f" ORDER BY at, (slot - ? + {STORY_LENGTH}) % {STORY_LENGTH}",
        (seq, told % STORY_LENGTH),
    )
    return tuple(
        Event(at=at, state=State(state), attempt=attempt, worker=worker, text=text)
        for at, state, attempt, worker, text in lines
    )


# -- cursors ---------------------------------------------------------------------------------------------


def _write_cursor(place: Place) -> str:
    born, seq = place
    return write_cursor(born, struct.pack(">q", seq))


def _read_cursor(cursor: str) -> Place:
    born, rest = read_cursor(cursor)
    try:
        (seq,) = struct.unpack(">q", rest)
    except struct.error:
        raise no_cursor(cursor) from None
    return born, seq
