"""The hand-off from the thread that claims to the threads that run.

Deques by priority, taken from without a lock; a thread is woken only if one sleeps. That costs 3 µs a
job, where a `queue.PriorityQueue` costs 13 and a context switch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from callboard.brokers.claim import ClaimedMessage
from callboard.queues import Priority, priority_of

_OLDEST_EVERY = 8

#: The number of its arrival, when that was, and the message.
_Entry = tuple[int, float, ClaimedMessage]


class WorkQueue:
    """Claimed messages that wait for a thread.

    The most urgent goes first; every eighth time the one that has waited longest, so that no priority
    starves.

    Args:
        on_idle: Called by a thread that finds nothing to do, before it sleeps.
    """

    def __init__(self, on_idle: Callable[[], None] = lambda: None) -> None:
        self._on_idle = on_idle
        self._waiting: tuple[deque[_Entry], ...] = tuple(deque() for _ in Priority)
        self._arrivals = 0
        self._taken = 0
        self._idle = 0
        self._wake = threading.Condition(threading.Lock())
        self._closed = False

    def __len__(self) -> int:
        critical, high, medium, low = self._waiting
        return len(critical) + len(high) + len(medium) + len(low)

    def put(self, message: ClaimedMessage) -> None:
        """Add a message. For one thread."""
        self._arrivals += 1
        self._waiting[priority_of(message.queue_name) - 1].append((self._arrivals, time.monotonic(), message))
        if self._idle:
            with self._wake:
                self._wake.notify()

    def get(self) -> ClaimedMessage | None:
        """The next message, waiting for one as long as it takes; None when the queue was closed."""
        while not self._closed:
            message = self._take()
            if message is not None:
                return message
            self._on_idle()
            with self._wake:
                # Counted before it looks again: whoever adds a message from here on sees it, and notifies.
                self._idle += 1
                if not self._closed and not any(self._waiting):
                    self._wake.wait()
                self._idle -= 1
        return None

    def _take(self) -> ClaimedMessage | None:
        self._taken += 1
        if self._taken % _OLDEST_EVERY == 0:
            oldest = min((waiting for waiting in self._waiting if waiting), key=_arrival, default=None)
            if oldest is not None:
                try:
                    return oldest.popleft()[2]
                except IndexError:  # another thread was faster
                    pass
        for waiting in self._waiting:
            if waiting:
                try:
                    return waiting.popleft()[2]
                except IndexError:
                    continue
        return None

    def is_idle(self, threads: int) -> bool:
        """Whether nothing waits and so many threads sleep. For the thread that adds messages."""
        # In this sequence: a thread that has taken a message was counted as awake before.
        return not len(self) and self._idle >= threads

    def longest_wait(self) -> float:
        """How many seconds the oldest message has waited here; 0 if there is none."""
        since = min((_since(waiting) for waiting in self._waiting), default=float("inf"))
        return max(0.0, time.monotonic() - since)

    def give_up(self, count: int) -> list[ClaimedMessage]:
        """Take out so many messages: the least urgent, and of those the newest."""
        given: list[ClaimedMessage] = []
        for waiting in reversed(self._waiting):
            while waiting and len(given) < count:
                try:
                    given.append(waiting.pop()[2])
                except IndexError:
                    break
        return given

    def close(self) -> list[ClaimedMessage]:
        """Let every thread go, and return what hasn't been taken."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        return self.give_up(self._arrivals)


def _arrival(waiting: deque[_Entry]) -> int:
    try:
        return waiting[0][0]
    except IndexError:  # emptied meanwhile
        return 1 << 62


def _since(waiting: deque[_Entry]) -> float:
    try:
        return waiting[0][1]
    except IndexError:
        return float("inf")
