"""The states of a job, and which may follow which.

    scheduled --> queued --> running --> succeeded
        ^           ^  ^        |
        |           |  |        +--> retrying --> queued
        +-- snoozed-+  |        +--> dead --> queued (replayed) | discarded
                       +-parked-+

Cancelled can be asked for before or during a run; expired is a deadline that passed before the start.
Every job ends as succeeded, dead, cancelled, expired or discarded.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SNOOZED = "snoozed"
    PARKED = "parked"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISCARDED = "discarded"

    @property
    def is_end(self) -> bool:
        """Whether a job in this state stays there by itself (a dead job can still be replayed)."""
        return self in _ENDS


_ENDS = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED, State.DISCARDED})

# Within one hop (see `order`) a job moves through these ranks, upwards only.
# By the plain text: to hash a member of an enumeration takes four times as long.
_RANK = {
    "scheduled": 0,
    "retrying": 0,
    "snoozed": 0,
    "parked": 0,
    "queued": 1,
    "running": 4,
    "succeeded": 8,
    "dead": 8,
    "cancelled": 8,
    "expired": 8,
    "discarded": 9,
}


def order(hop: int, state: State) -> int:
    """How new a state is, as a number that needs no clock: late records never overwrite newer ones.

    A hop is one stay in a queue. Each time Callboard publishes the job again (a retry, a snooze, a park,
    a replay) the hop in its headers grows by one, so whatever happens in a later hop is newer.
    """
    return hop * 16 + _RANK[state._value_]
