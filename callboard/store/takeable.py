"""Values that a database can't take: text with half a surrogate pair, whole numbers of very many bits.

They come from tracebacks and payloads, and must not hold up the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from callboard.errors import printable
from callboard.states import State
from callboard.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Callable


def mended(change: Change, *, bits: int) -> Change:
    """The change with values that can be stored, as near as may be to those it has.

    Parameters:
        bits: How many a whole number may have, its sign not counted.
    """
    takeable = _taking(2**bits)
    return Change(**{name: takeable(value) for name, value in msgspec.structs.asdict(change).items()})


def _taking(most: int) -> Callable[[Any], Any]:
    def takeable(value: Any) -> Any:
        if value is None or isinstance(value, (State, float)):
            return value
        if isinstance(value, tuple):
            return tuple(map(takeable, value))
        if isinstance(value, int):
            return max(-most, min(value, most - 1))
        return printable(str(value))

    return takeable
