"""Deliveries that are here and not fetched yet, and which of them comes next.

The most urgent priority first, in it the oldest; but every eighth time the oldest of all, so that nothing
waits for ever behind more urgent work. What isn't due yet is kept beside them until it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from callboard.brokers.rabbitmq.delays import LEAD
from callboard.queues import Priority, priority_of

if TYPE_CHECKING:
    from callboard.brokers.driver import Delivery

_OLDEST_EVERY = 8


class Waiting:
    """The link's thread adds and removes, one other takes."""

    def __init__(self) -> None:
        # (since when it waits, its number, the delivery): pushing and popping such tuples is atomic
        self._heaps: dict[Priority, list[tuple[int, int, Delivery]]] = {priority: [] for priority in Priority}
        self._early: list[tuple[int, int, Delivery]] = []  # (when it is due, its number, the delivery)
        self._numbers = count()
        self._taken = 0
        self._lost: list[Delivery] = []  # found by taking
        self._lock = threading.Lock()  # between taking and removing

    def __bool__(self) -> bool:
        return any(self._heaps.values())

    def add(self, delivery: Delivery, since: int) -> None:
        """`since` is when the wait began, in microseconds since the epoch; 0 if nobody knows."""
        now = int(time.time() * 1e6)
        # Not later than now: a sender whose clock is fast would see its jobs wait behind all others.
        since = min(since, now) if since else now
        heappush(self._heaps[priority_of(delivery.queue)], (since, next(self._numbers), delivery))

    def keep(self, delivery: Delivery, due: int) -> None:
        """Not to be taken before it is due, in microseconds since the epoch; or `LEAD` after it came, when our
        clock is behind that of the sender."""
        heappush(self._early, (due, next(self._numbers), delivery))

    @property
    def next_due(self) -> float | None:
        """Seconds until the next of those that are kept is due; None if nothing is kept."""
        if not self._early:
            return None
        due, _, delivery = self._early[0]
        arrived: float = delivery.token.arrived
        return min((due + 1) / 1e6 - time.time(), arrived + LEAD - time.monotonic())

    def take_due(self) -> list[tuple[Delivery, int]]:
        """Those that were kept and are due by now, with the time at which each was."""
        found: list[tuple[Delivery, int]] = []
        while (left := self.next_due) is not None and left <= 0:
            due, _, delivery = heappop(self._early)
            found.append((delivery, due))
        return found

    def take(self, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries, in the order in which they should run."""
        found: list[Delivery] = []
        with self._lock:
            while len(found) < limit:
                filled = [heap for heap in self._heaps.values() if heap]
                if not filled:
                    break
                oldest_turn = len(filled) > 1 and self._taken % _OLDEST_EVERY == _OLDEST_EVERY - 1
                delivery = heappop(min(filled) if oldest_turn else filled[0])[2]
                if delivery.token.hold.is_open:
                    self._taken += 1
                    delivery.token.hold.fetched += 1
                    found.append(delivery)
                else:
                    self._lost.append(delivery)
        return found

    def left_since(self, moment: float) -> set[str]:
        """The queues of deliveries that came before a moment of the monotonic clock and are still here."""
        with self._lock:
            return {
                delivery.queue
                for heap in self._heaps.values()
                for _, _, delivery in heap
                if delivery.token.arrived < moment
            }

    def remove(self, queues: Collection[str]) -> list[Delivery]:
        """Take out what came from these queues, oldest first."""
        return self._remove(lambda delivery: delivery.queue in queues)

    def remove_lost(self) -> list[Delivery]:
        """Take out what came through channels that are gone: it is somebody else's by now."""
        found = self._remove(lambda delivery: not delivery.token.hold.is_open)
        with self._lock:
            found += self._lost
            self._lost.clear()
        return found

    def _remove(self, wanted: Callable[[Delivery], bool]) -> list[Delivery]:
        removed: list[tuple[int, int, Delivery]] = []
        with self._lock:
            for heap in (*self._heaps.values(), self._early):
                gone = [item for item in heap if wanted(item[2])]
                if gone:
                    heap[:] = [item for item in heap if not wanted(item[2])]
                    heapify(heap)
                    removed += gone
        return [delivery for _, _, delivery in sorted(removed)]
