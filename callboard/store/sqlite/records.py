"""The write path: a batch of changes becomes a few statements, each for hundreds of records.

Why not `executemany`: it gives up the interpreter's lock once a row, and has to win it back from the
threads that run jobs, up to 5 ms each time. Beside one busy thread, 500 records took half a second; in
statements of 256 rows they take 17 ms. The work within a statement disturbs nobody.

Nearly every change is as new as its record or newer, and overwrites; or it is older than all that the
record knows (the producer's, told after the worker's), and fills what is empty. Both are one upsert.
A batch with a change in between is written again, with the histories of its records; see `merge.py`.
"""

# ruff: noqa: S608 - columns and tables are constants of this package, every value is bound
from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from callboard.store.merge import FIELDS, HISTORY_LIMIT, KIND, Draft, tags_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from callboard.store.base import Change

STORY_LENGTH = 100  # lines kept of a job's story, the newest

_ROWS = (256, 64, 16, 4, 1)
_HEAD = ("job_id", "ord", "state", "updated_at")
_TAIL = ("low", "history", "told")
_COLUMNS = (*_HEAD, *FIELDS, *_TAIL)
_TAGS_FROM_END = _COLUMNS.index("tags") - len(_HEAD) - len(FIELDS)

# `_value_` is the state's plain text: the `value` property costs more than the rest of the line, and a
# State itself would have to be adapted by sqlite3.
_head_and_fields: Callable[[Change], tuple[Any, ...]] = attrgetter(
    "job_id", "order", "state._value_", "at", *FIELDS
)


class OutOfOrder(Exception):
    """A change is newer than some of what its record knows and older than the rest."""


class Bulk:
    """A statement for many rows at once: `head`, a tuple of `width` values for each row, `tail`."""

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        row = f"({','.join('?' * width)})"
        self._width = width
        self._statements = [(rows, f"{head} {','.join([row] * rows)} {tail}") for rows in _ROWS]

    def execute(self, connection: sqlite3.Connection, values: list[Any]) -> int:
        """Run it for the rows that make up `values`; returns how many rows of the table it touched."""
        touched = 0
        start = 0
        for rows, statement in self._statements:
            step = rows * self._width
            while len(values) - start >= step:
                touched += connection.execute(statement, values[start : start + step]).rowcount
                start += step
        return touched


def _new_row() -> dict[str, str]:
    """The columns of a new record, as expressions over the columns of VALUES."""
    given = {name: f"column{number}" for number, name in enumerate(_COLUMNS, start=1)}
    said = {name: f"nullif({given[name]}, '')" if name in KIND else given[name] for name in FIELDS}
    mask = " + ".join(
        f"({value} IS NOT NULL) * {1 << position}" for position, value in enumerate(said.values())
    )
    return {
        **given,
        **{name: f"coalesce({given[name]}, '')" for name in KIND},
        "low": f"coalesce({given['low']}, {given['ord']})",
        "history": f"coalesce({given['history']}, ';' || {given['ord']} || ':' || ({mask}))",
        "born": f"coalesce({given['enqueued_at']}, {given['updated_at']})",
    }


def _upsert() -> Bulk:
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
    for name in FIELDS:
        if name in KIND:
            over = f"coalesce(nullif(excluded.{name}, ''), {name})"
            fill = f"coalesce(nullif({name}, ''), excluded.{name})"
        else:
            over = f"coalesce(excluded.{name}, {name})"
            fill = f"coalesce({name}, excluded.{name})"
        updates[name] = f"iif({newer}, {over}, {fill})"
    return _insert(updates, f"WHERE {newer} OR excluded.ord < low")


def _insert(updates: dict[str, str], condition: str = "") -> Bulk:
    """Insert records, or change those that are there."""
    new = _new_row()
    assignments = ", ".join(f"{name} = {value}" for name, value in updates.items())
    return Bulk(
        f"INSERT INTO records ({', '.join(new)}) SELECT {', '.join(new.values())} FROM (VALUES",
        len(_COLUMNS),
        f") WHERE true ON CONFLICT (job_id) DO UPDATE SET {assignments} {condition}",
    )


_UPSERT = _upsert()
_OVERWRITE = _insert({name: f"excluded.{name}" for name in _COLUMNS})
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
        self._values = self._upsert_values()

    def _upsert_values(self) -> list[Any]:
        values: list[Any] = []
        for job_id, changes in self._jobs.items():
            if len(changes) == 1:
                change = changes[0]
                values += _head_and_fields(change)
                if change.tags is not None:
                    values[_TAGS_FROM_END] = tags_json(change.tags)
                values += (None, None, 0 if change.event is None else 1)
            else:
                values += self._row(job_id, Draft.of(changes), told=0)
        return values

    def _row(self, job_id: str, draft: Draft, *, told: int) -> list[Any]:
        told += len(self._stories.get(job_id, ()))
        return [
            job_id, draft.order, draft.state, draft.updated_at, *draft.values, draft.low, draft.history, told
        ]  # fmt: skip

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it within a transaction.

        Raises:
            OutOfOrder: If the transaction has to be undone, and the batch written exactly.
        """
        if _UPSERT.execute(connection, self._values) != len(self._jobs):
            raise OutOfOrder
        self._write_beside(connection)

    def write_exactly(self, connection: sqlite3.Connection) -> None:
        """Write it within a transaction, whatever came before what."""
        values: list[Any] = []
        for job_id, changes in self._jobs.items():
            draft, told = _find(connection, job_id)
            draft.apply(changes)
            values += self._row(job_id, draft, told=told)
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
    order, state, updated_at, *rest = found[1:]
    *values, low, history, told = rest
    draft = Draft(order=order, low=low, state=state, updated_at=updated_at, values=values, history=history)
    return draft, told
