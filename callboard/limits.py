"""How often jobs may run, and how many at once.

    @actor(rate="100/minute")
    @actor(rate=RateLimit("10/s", key="tenant_id"))
    @actor(concurrency=ConcurrencyLimit(5, key="tenant_id"))

A limit holds over all workers. A job that must wait goes back to the broker with the time that is reserved for it: it
uses no attempt and no thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_RATE = re.compile(r"(\d+)\s*/\s*(\d*)\s*([a-z]+)")
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
}
_AT_ONCE = 0.1  # seconds; to space jobs more finely would cost more than it serves

Key = str | Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True)
class RateLimit:
    """So many starts in a time, evenly spaced.

    Attributes:
        rate: As in '10/s', '100/minute', '5/10 minutes', '1000/day'.
        key: Each value has a rate of its own: a field of the payload by its name, or what is made of the payload, a
            mapping of its fields as JSON has them, with the defaults of those that weren't sent. Without one, all
            jobs share the rate.
        name: Instead of the actor's, for actors that share a rate.
        burst: How many may start at once after a lull. By default as many as fall into a tenth of a second, or one.

    Raises:
        ValueError: If the rate can't be read.
    """

    rate: str
    key: Key | None = None
    name: str | None = None
    burst: int | None = None
    every: float = field(init=False)  # seconds between two starts

    def __post_init__(self) -> None:
        read = _RATE.fullmatch(self.rate.strip().lower())
        count, number, unit = read.groups() if read is not None else ("0", "", "")
        seconds = _UNITS.get(unit, 0) * int(number or 1)
        if int(count) < 1 or seconds < 1:
            raise ValueError(
                f"a rate reads like '10/s', '100/minute' or '5/10 minutes', at least one in a time, not {self.rate!r}"
            )
        if self.burst is not None and self.burst < 1:
            raise ValueError(f"a burst is at least 1, not {self.burst}")
        object.__setattr__(self, "every", seconds / int(count))

    @property
    def at_once(self) -> int:
        """How many may start at once."""
        return self.burst if self.burst is not None else max(1, round(_AT_ONCE / self.every))


@dataclass(frozen=True)
class ConcurrencyLimit:
    """So many jobs at once.

    Attributes:
        places: How many.
        key: Each value has so many places of its own; see `RateLimit`.
        name: Instead of the actor's, for actors that share places.

    Raises:
        ValueError: If there is no place.
    """

    places: int
    key: Key | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.places, bool) or not isinstance(self.places, int) or self.places < 1:
            raise ValueError(f"a concurrency limit is a number of jobs, 1 or more, not {self.places!r}")


def key_of(key: Key | None, payload: Mapping[str, Any]) -> str:
    """What a job counts with; empty where all count together, and for those that lack the field."""
    if key is None:
        return ""
    return str(payload.get(key, "") if isinstance(key, str) else key(payload))
