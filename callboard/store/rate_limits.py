"""Dramatiq's barriers and rate limits, counted in a store: what lets a group's end be seen across processes.

Give it to Dramatiq's own `GroupCallbacks` middleware, or to any of its rate limiters.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dramatiq.rate_limits import RateLimiterBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from callboard.store.base import Store

_POLL = 0.02


class StoreRateLimiterBackend(RateLimiterBackend):
    """Numbers in a store, moved atomically whichever process asks. Times to live are in milliseconds."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Set a number unless there is one."""
        return self.store.set_number(key, value, ttl=ttl / 1000)

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """Raise a number, unless it would pass the maximum."""
        return self.store.move_number(key, amount, most=maximum, ttl=ttl / 1000)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """Lower a number, unless it would fall under the minimum."""
        return self.store.move_number(key, -amount, least=minimum, ttl=ttl / 1000)

    def incr_and_sum(
        self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int
    ) -> bool:
        """Raise a number, unless the sum of all `keys` would pass the maximum."""
        return self.store.move_number(key, amount, most=maximum, sum_with=set(keys()), ttl=ttl / 1000)

    def wait(self, key: str, timeout: int | None) -> bool:
        """Wait until a key is notified; False after `timeout` milliseconds."""
        end = None if timeout is None else time.monotonic() + timeout / 1000
        while not self.store.has_number(key):
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(_POLL)
        return True

    def wait_notify(self, key: str, ttl: int) -> None:
        """Let everybody go who waits for a key, and everybody who will within the time to live."""
        self.store.set_number(key, 1, ttl=ttl / 1000)
