"""The messages of one put, and what has become of each.

A message is written; then it is confirmed, or it goes back among those that wait: returned, refused, or lost
with its connection. A batch is settled when all of its messages are confirmed or have failed for good.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from callboard.brokers.driver import Outgoing


class Entry:
    """One message on its way."""

    __slots__ = ("batch", "confirmed", "lost", "message", "refusals", "returned", "written")

    def __init__(self, batch: Batch, message: Outgoing) -> None:
        self.batch = batch
        self.message = message
        self.written = False  # to this connection, and no answer yet
        self.lost = False  # it was written to a connection that went without an answer
        self.returned = False
        self.refusals = 0
        self.confirmed = False

    @property
    def may_be_queued(self) -> bool:
        return self.written or self.lost


class Batch:
    """The messages of one `put`, and what became of them."""

    __slots__ = (
        "_left",
        "_settled",
        "abandoned",
        "entries",
        "failed",
        "has_turn",
        "on_settled",
        "problem",
        "waiting",
    )

    def __init__(
        self, messages: Sequence[Outgoing], on_settled: Callable[[Batch], None] | None = None
    ) -> None:
        self.entries = [Entry(self, message) for message in messages]
        self.waiting = deque(self.entries)
        self.failed = False
        self.problem = ""
        self.abandoned = False  # its sender has stopped waiting
        self.has_turn = True  # it stands in the publisher's line
        self.on_settled = on_settled
        self._left = len(self.entries)
        self._settled = threading.Lock()
        if self._left:
            self._settled.acquire()

    def wait(self, seconds: float) -> bool:
        """Whether all messages were settled in time."""
        return self._settled.acquire(timeout=max(0.0, seconds))

    @property
    def is_safe(self) -> bool:
        """Whether all of it is confirmed. Ask when it is settled."""
        return not self.failed

    # The rest is called in the link's thread only.

    def confirm(self, entry: Entry) -> None:
        entry.confirmed = True
        self._settle_one()

    def fail(self, entry: Entry, problem: str) -> None:
        """Trying again won't help this message."""
        self.problem = problem
        self.failed = True
        entry.written = False
        self._settle_one()

    def _settle_one(self) -> None:
        self._left -= 1
        if not self._left:
            self._settled.release()
            if self.on_settled is not None:
                self.on_settled(self)
