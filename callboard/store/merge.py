"""What several changes come to: how a record can be told by processes that know nothing of each other.

The producer, each worker and the command line write what they know when they get to it; what a job's
first worker knew may arrive after its last one's. So a record remembers, beside its fields, its history:
the order of each change that was written, and which fields that one set. Then a field always shows what
the change with the highest order said of it, the last one written among equals, and however the changes
are divided into batches, and in whatever sequence those are written, the record ends the same.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from callboard.store.base import Change

# A position in here is a bit in histories on disk: append only, never reorder.
FIELDS = (
    "actor",
    "category",
    "queue",
    "priority",
    "tags",
    "payload",
    "enqueued_at",
    "due_at",
    "expires_at",
    "started_at",
    "finished_at",
    "attempt",
    "worker",
    "error_type",
    "error",
    "traceback",
    "fingerprint",
    "reason",
    "progress",
    "progress_note",
)
# What kind of job it is. Unlike the other fields these are never known to be empty: '' says nothing.
KIND = ("actor", "category", "queue")

# A job that is retried for ever is no reason for a history without end. Where one was cut short, every
# field counts as new as the record itself.
HISTORY_LIMIT = 2000

_TAGS = FIELDS.index("tags")
_NOTHING = (None,) * len(FIELDS)
BITS = tuple(1 << position for position in range(len(FIELDS)))

_field_values: Callable[[Change], tuple[Any, ...]] = attrgetter(*FIELDS)


def field_values(change: Change) -> tuple[Any, ...]:
    """What a change sets, in the sequence of `FIELDS`; tags as JSON."""
    values = _field_values(change)
    if change.tags is None and "" not in values[: len(KIND)]:
        return values
    kind = [value or None for value in values[: len(KIND)]]
    tags = None if change.tags is None else tags_json(change.tags)
    return (*kind, *values[len(KIND) : _TAGS], tags, *values[_TAGS + 1 :])


def tags_json(tags: Iterable[str]) -> str:
    return json.dumps(list(tags), ensure_ascii=False)


class Draft:
    """A record while changes are applied to it.

    `values` are those of `FIELDS`, None where nothing is known; `history` is the text that a store keeps
    with the record, `low` the lowest order in it.
    """

    def __init__(
        self,
        *,
        order: int = -1,
        low: int = 2**31,
        state: str = "",
        updated_at: float = 0.0,
        values: Sequence[Any] = _NOTHING,
        history: str = "",
    ) -> None:
        self.order = order
        self.low = low
        self.state = state
        self.updated_at = updated_at
        self.values = values
        self.history = history

    @classmethod
    def of(cls, changes: Sequence[Change]) -> Draft:
        """The changes of one job, in the sequence they were recorded in, as a new record."""
        changes = sorted(changes, key=attrgetter("order"))
        newest = changes[-1]
        values = field_values(newest)
        entries = [_entry(newest.order, values)]
        low = newest.order
        # An older change that says nothing which a newer one doesn't say anew leaves no trace.
        for change in reversed(changes[:-1]):
            older = field_values(change)
            filled = tuple([old if new is None else new for old, new in zip(older, values, strict=True)])
            if filled != values:
                values = filled
                low = change.order
                entries.append(_entry(change.order, older))
        return cls(
            order=newest.order,
            low=low,
            state=newest.state.value,
            updated_at=newest.at,
            values=values,
            history="".join(reversed(entries)),
        )

    def apply(self, changes: Iterable[Change]) -> None:
        """Let changes come to a record that may know older and newer things than they do."""
        values = list(self.values)
        orders = self._field_orders()
        for change in changes:
            order = change.order
            said = field_values(change)
            for position, value in enumerate(said):
                if value is not None and order >= orders[position]:
                    orders[position] = order
                    values[position] = value
            if order >= self.order:
                self.order = order
                self.state = change.state.value
                self.updated_at = change.at
            self.low = min(self.low, order)
            entry = _entry(order, said)
            if len(self.history) <= HISTORY_LIMIT and not self.history.endswith(entry):
                self.history += entry
        self.values = values

    def _field_orders(self) -> list[int]:
        """How new each field is."""
        if len(self.history) > HISTORY_LIMIT:
            return [-1 if value is None or value == "" else self.order for value in self.values]
        orders = [-1] * len(FIELDS)
        for entry in self.history.split(";")[1:]:
            order, mask = map(int, entry.split(":"))
            orders = [max(old, order) if mask & bit else old for old, bit in zip(orders, BITS, strict=True)]
        return orders


def _entry(order: int, values: Iterable[Any]) -> str:
    return entry_of(order, sum([bit for bit, value in zip(BITS, values, strict=True) if value is not None]))


def entry_of(order: int, mask: int) -> str:
    """What a change of an order adds to a history if it set the fields in `mask`, a sum of `BITS`."""
    return f";{order}:{mask}"
