"""A record as Redis keeps it: MessagePack of

    [order, state, updated_at, born, values, orders, story]

`values` are those of `callboard.store.merge.FIELDS`, false where nothing is known; `orders` says how new each is, -1
where nothing is known. `born` is when the job was new: what "newest first" goes by. It never changes, so neither do
the places of records among the pages of a search. `story` has a list of five for each of the newest lines.

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
    from collections.abc import Callable, Iterable, Sequence

    from callboard.store.base import Change

STORY_LENGTH = 100  # lines kept of a job's story, the newest

#: What whole numbers survive in Lua.
BITS = 53

# Lua makes whole numbers of those that are whole.
_FLOATS = frozenset({"enqueued_at", "due_at", "expires_at", "started_at", "finished_at", "progress"})
_UNKNOWN = (False,) * len(FIELDS)
_NEVER = (-1,) * len(FIELDS)
_ENQUEUED_AT = FIELDS.index("enqueued_at")

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
    newest = changes[-1]
    if len(changes) == 1:
        said = _said(newest)
        values: Iterable[Any] = [False if value is None else value for value in said]
        orders: Iterable[int] = [-1 if value is None else newest.order for value in said]
    else:
        values, orders = list(_UNKNOWN), list(_NEVER)
        by_order = sorted(changes, key=attrgetter("order"))
        newest = by_order[-1]
        for change in by_order:
            for position, value in enumerate(_said(change)):
                if value is not None:
                    values[position], orders[position] = value, change.order
    born = values[_ENQUEUED_AT]  # type: ignore[index]
    return (
        newest.order,
        newest.state._value_,
        float(newest.at),
        float(newest.at if born is False else born),
        values,
        orders,
        [_line(change) for change in changes if change.event is not None][-STORY_LENGTH:],
    )


def _said(change: Change) -> Sequence[Any]:
    """What a change sets, in the sequence of `FIELDS`."""
    values = _field_values(change)
    # A kind is never known to be empty; it is a part of a key, whose parts a line break divides.
    kind = [(value and value.replace("\n", " ")) or None for value in values[: len(KIND)]]
    return (*kind, *values[len(KIND) :])


def _line(change: Change) -> tuple[Any, ...]:
    return (float(change.at), change.state._value_, change.attempt or 0, change.worker or "", change.event)


def unpack(job_id: str, value: bytes, *, story: bool) -> Record:
    """A record, with its story if that is wanted."""
    order, state, at, _, values, _, lines = _decode(value)
    known: dict[str, Any] = {
        name: float(value) if name in _FLOATS else value
        for name, value in zip(FIELDS, values, strict=False)  # an older Callboard knew fewer
        if value is not False
    }
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
