"""The write path: a batch of changes becomes a few statements, each for hundreds of records.

Why not `executemany`: it gives up the interpreter's lock once a row, and has to win it back from the
threads that run jobs, up to 5 ms each time. Beside one busy thread, 500 records took half a second; in
one statement they take 10 ms. The work within a statement disturbs nobody. So a batch is few statements:
those that have a row or two too many get empty ones.

Nearly every change is as new as its record or newer, and overwrites; or it is older than all that the
record knows (the producer's, told after the worker's), and fills what is empty. Both are one upsert.
A batch with a change in between is written again, with the histories of its records; see `merge.py`.
"""

# ruff: noqa: S608 - columns and tables are constants of this package, every value is bound
from __future__ import annotations

import operator
from collections import defaultdict
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any

from callboard.store.merge import BITS, FIELDS, HISTORY_LIMIT, KIND, Draft, entry_of, field_values

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from callboard.store.base import Change

STORY_LENGTH = 100  # lines kept of a job's story, the newest

_ROWS = (512, 128, 32, 8, 2, 1)
_HEAD = ("job_id", "ord", "state", "updated_at", "low", "history", "told")
_COLUMNS = (*_HEAD, *FIELDS)
_MOST_SHAPES = 64


class OutOfOrder(Exception):
    """A change is newer than some of what its record knows and older than the rest."""


class Bulk:
    """A statement for many rows at once: `head`, a tuple of `width` values for each row, `tail`."""

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        row = f"({','.join('?' * width)})"
        self._width = width
        self._statements = [(rows, f"{head} {','.join([row] * rows)} {tail}") for rows in _ROWS]

    def execute(self, connection: sqlite3.Connection, values: list[Any]) -> int:
        """Run it for the rows that make up `values`; returns how many rows of the table it touched.

        It gets rows of NULLs, too, and has to ignore them.
        """
        touched = 0
        start = 0
        for rows, statement in self._statements:
            step = rows * self._width
            while (missing := start + step - len(values)) <= step // 4:
                piece = values[start : start + step]
                touched += connection.execute(statement, piece + [None] * max(0, missing)).rowcount
                start += step
                if missing >= 0:
                    return touched
        return touched


def _upsert(fields: Sequence[str]) -> Bulk:
    """Insert records of which these fields are known, or let that come to the records that are there."""
    newer = "excluded.low >= ord"
    updates = {
        "state": f"iif({newer}, excluded.state, state)",
        "updated_at": f"iif({newer}, excluded.updated_at, updated_at)",
        "ord": "max(ord, excluded.ord)",
        "low": "min(low, excluded.low)",
        "told": "told + excluded.told",
        "history": f"iif(length(history) > {HISTORY_LIMIT}"
        " OR substr(history, -length(excluded.history)) = excluded.history, history, history || excluded.history)",
    }
    for name in fields:
        known = f"nullif({name}, '')" if name in KIND else name
        updates[name] = f"iif({newer}, excluded.{name}, coalesce({known}, excluded.{name}))"
    return _insert(fields, updates, f"WHERE {newer} OR excluded.ord < low")


def _insert(fields: Sequence[str], updates: Mapping[str, str], condition: str = "") -> Bulk:
    """Insert records, or change those that are there."""
    columns = (*_HEAD, *fields)
    new = {name: f"column{number}" for number, name in enumerate(columns, start=1)}
    new["born"] = f"coalesce({new.get('enqueued_at', 'NULL')}, {new['updated_at']})"
    for name in set(fields) & set(KIND):
        new[name] = f"coalesce({new[name]}, '')"
    assignments = ", ".join(f"{name} = {value}" for name, value in updates.items())
    return Bulk(
        f"INSERT INTO records ({', '.join(new)}) SELECT {', '.join(new.values())} FROM (VALUES",
        len(columns),
        f") WHERE column1 IS NOT NULL ON CONFLICT (job_id) DO UPDATE SET {assignments} {condition}",
    )


class _Shape:
    """The changes that say the same fields. A statement that names no others takes half the time."""

    def __init__(self, said: Sequence[int]) -> None:
        self._mask = sum([BITS[position] for position in said])
        self._entries: dict[int, str] = {}
        self.upsert = _upsert([FIELDS[position] for position in said])
        # Two at least, or it would give a value and no tuple.
        self.pick: Callable[[Sequence[Any]], Sequence[Any]] = (
            operator.itemgetter(*said)
            if len(said) > 1
            else lambda values: [values[position] for position in said]
        )

    def entry(self, order: int) -> str:
        """The history of a change of this shape."""
        entry = self._entries.get(order)
        if entry is None:
            entry = entry_of(order, self._mask)
            if len(self._entries) < _MOST_SHAPES:
                self._entries[order] = entry
        return entry


@lru_cache(maxsize=_MOST_SHAPES)
def _shape(types: tuple[type[Any], ...]) -> _Shape:
    """The shape of changes whose fields have values of these types. A dozen or two occur."""
    return _Shape([position for position, kind in enumerate(types) if kind is not NoneType])


_OVERWRITE = _insert(FIELDS, {name: f"excluded.{name}" for name in _COLUMNS})
_TELL = Bulk(
    f"""
    INSERT OR REPLACE INTO events (seq, slot, at, state, attempt, worker, text)
    SELECT seq, (told - column2) % {STORY_LENGTH}, column3, column4, column5, column6, column7 FROM (VALUES
    """,
    7,
    ") CROSS JOIN records WHERE job_id = column1",
)
_TAG = Bulk(
    "INSERT OR IGNORE INTO tags (tag, born, seq) SELECT column2, born, seq FROM (VALUES",
    2,
    ") CROSS JOIN records WHERE job_id = column1",
)
_FIND = f"SELECT {', '.join(_COLUMNS)} FROM records WHERE job_id = ?"


class Batch:
    """Changes made ready to be written, outside of any transaction."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._jobs: dict[str, list[Change]] = {}
        jobs = self._jobs
        self._stories: defaultdict[str, list[Change]] = defaultdict(list)
        self._tags: list[str] = []
        for change in changes:
            job_id = change.job_id
            if job_id in jobs:
                jobs[job_id].append(change)
            else:
                jobs[job_id] = [change]
            if change.event is not None:
                self._stories[job_id].append(change)
            if change.tags:
                for tag in change.tags:
                    self._tags += (job_id, tag)
        self._rows = self._upserts()

    def _upserts(self) -> dict[_Shape, list[Any]]:
        """The values of the rows to be written, by their shapes."""
        rows: defaultdict[_Shape, list[Any]] = defaultdict(list)
        for job_id, changes in self._jobs.items():
            if len(changes) == 1:
                change = changes[0]
                order = change.order
                values = field_values(change)
                shape = _shape(tuple(map(type, values)))
                # `_value_` is the state's plain text: the `value` property takes ten times as long, and a
                # State itself would have to be adapted by sqlite3.
                rows[shape] += (
                    job_id, order, change.state._value_, change.at, order, shape.entry(order),
                    0 if change.event is None else 1, *shape.pick(values),
                )  # fmt: skip
            else:
                draft = Draft.of(changes)
                shape = _shape(tuple(map(type, draft.values)))
                rows[shape] += (*self._head(job_id, draft), *shape.pick(draft.values))
        return rows

    def _head(self, job_id: str, draft: Draft, *, told: int = 0) -> tuple[Any, ...]:
        told += len(self._stories.get(job_id, ()))
        return job_id, draft.order, draft.state, draft.updated_at, draft.low, draft.history, told

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it within a transaction.

        Raises:
            OutOfOrder: If the transaction has to be undone, and the batch written exactly.
        """
        touched = sum([shape.upsert.execute(connection, values) for shape, values in self._rows.items()])
        if touched != len(self._jobs):
            raise OutOfOrder
        self._write_beside(connection)

    def write_exactly(self, connection: sqlite3.Connection) -> None:
        """Write it within a transaction, whatever came before what."""
        values: list[Any] = []
        for job_id, changes in self._jobs.items():
            draft, told = _find(connection, job_id)
            draft.apply(changes)
            values += (*self._head(job_id, draft, told=told), *draft.values)
        _OVERWRITE.execute(connection, values)
        self._write_beside(connection)

    def _write_beside(self, connection: sqlite3.Connection) -> None:
        if self._stories:
            lines: list[Any] = []
            for job_id, told in self._stories.items():
                for back, change in zip(range(len(told), 0, -1), told, strict=True):
                    lines += (
                        job_id, back, change.at, change.state.value, change.attempt or 0, change.worker or "",
                        change.event,
                    )  # fmt: skip
            _TELL.execute(connection, lines)
        if self._tags:
            _TAG.execute(connection, self._tags)


def _find(connection: sqlite3.Connection, job_id: str) -> tuple[Draft, int]:
    """A record as it is, and how many lines its story has had."""
    found = connection.execute(_FIND, (job_id,)).fetchone()
    if found is None:
        return Draft(), 0
    order, state, updated_at, low, history, told, *values = found[1:]
    draft = Draft(order=order, low=low, state=state, updated_at=updated_at, values=values, history=history)
    return draft, told
