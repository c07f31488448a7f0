"""A record as Redis keeps it: MessagePack of

    [order, state, updated_at, born, known, story]

`known` has three for each field that somebody said: its position in `callboard.store.merge.FIELDS`, how new it is,
and its value. `born` is when the job was new: what "newest first" goes by. It never changes, so neither do the places
of records among the pages of a search. `story` has a list of five for each of the newest lines.

Changes are merged by their orders (see `merge.py`): those of one batch here, with what was known before in
`lua/write.lua`. As each field has its order, no history is kept.
"""

from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from callboard.states import State
from callboard.store.base import Event, Record
from callboard.store.merge import FIELDS, KIND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from callboard.store.base import Change

STORY_LENGTH = 100  # lines kept of a job's story, the newest

#: What whole numbers survive in Lua.
BITS = 53

# Lua makes whole numbers of those that are whole.
_FLOATS = frozenset({"enqueued_at", "due_at", "expires_at", "started_at", "finished_at", "progress"})
_ENQUEUED_AT = FIELDS.index("enqueued_at")
_KINDS = len(KIND)  # which are the first

_field_values: Callable[[Change], tuple[Any, ...]] = attrgetter(*FIELDS)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def pack_batch(changes: Sequence[Change]) -> list[bytes]:
    """The ids of the jobs that changes are about, each followed by what was said of it, as a record.

    Raises:
        UnicodeEncodeError, OverflowError, TypeError: A value can't be stored.
    """
    jobs: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        jobs[change.job_id].append(change)
    packed: list[bytes] = []
    for job_id, told in jobs.items():
        packed += (job_id.encode(), _encode(_folded(told)))
    return packed


def _folded(changes: Sequence[Change]) -> tuple[Any, ...]:
    """The changes of one job, in the sequence they were recorded in, as a new record."""
    said: dict[int, tuple[int, Any]] = {}  # field -> how new, and its value
    by_order = sorted(changes, key=attrgetter("order")) if len(changes) > 1 else changes
    for change in by_order:
        order = change.order
        for field, value in enumerate(_field_values(change)):
            if value is None or (field < _KINDS and not (value := _kind(value))):
                continue
            said[field] = (order, value)
    newest = by_order[-1]
    known: list[Any] = []
    for field, (order, value) in said.items():
        known += (field, order, value)
    return (
        newest.order,
        newest.state._value_,
        float(newest.at),
        float(said[_ENQUEUED_AT][1] if _ENQUEUED_AT in said else newest.at),
        known,
        [_line(change) for change in changes if change.event is not None][-STORY_LENGTH:],
    )


def _kind(name: str) -> str:
    """The name of an actor, category or queue; '' says nothing. In a key, line breaks part one from the next."""
    return name.replace("\n", " ")


def _line(change: Change) -> tuple[Any, ...]:
    return (float(change.at), change.state._value_, change.attempt or 0, change.worker or "", change.event)


def unpack(job_id: str, value: bytes, *, story: bool) -> Record:
    """A record, with its story if that is wanted."""
    order, state, at, _, said, lines = _decode(value)
    known: dict[str, Any] = {}
    for field, known_value in zip(said[::3], said[2::3], strict=True):
        if field < len(FIELDS):  # a newer Callboard knows more
            name = FIELDS[field]
            known[name] = float(known_value) if name in _FLOATS else known_value
    if "tags" in known:
        known["tags"] = tuple(known["tags"])
    record = Record(job_id=job_id, order=order, state=State(state), updated_at=float(at), **known)
    if story:
        # Lines told late go where they belong.
        record.events = tuple(sorted(map(_event, lines), key=attrgetter("at")))
    return record


def _event(line: Sequence[Any]) -> Event:
    at, state, attempt, worker, text = line
    return Event(at=float(at), state=State(state), attempt=attempt, worker=worker, text=text)
