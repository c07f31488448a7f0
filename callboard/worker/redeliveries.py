"""Jobs that were delivered before: each waits, and is looked at, before it starts here.

A broker whose claims are no leases (RabbitMQ) delivers a job again when a connection is gone, and can't know
whether the worker behind it is gone, too. So such a job waits two seconds, in which a run that is nearly done
ends. It waits in the claiming thread's timer and holds no thread. Then it is looked at: while it runs in any
process of this worker, or somebody holds its lease in the store, or the store can't be read, it goes on
waiting; if its claim is gone meanwhile, it is somebody else's; otherwise it may start. That it has ended long
since is told by its record, when it is about to start (`callboard.brokers.copies`).

What may start and finds no free thread for a while is given back, so that nothing is hoarded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger

log = get_logger(__name__)

#: Seconds that a job waits before it is looked at.
WAIT = 2.0
_LOOK_AGAIN = 0.5
#: Seconds for which what may start waits for a free thread.
_HOARD = 5.0


def lease_key(job_id: str) -> str:
    """The store's key that somebody holds for as long as he runs a job."""
    return f"lease:{job_id}"


class Redeliveries:
    """What waits. All of it is for the claiming thread.

    Args:
        broker: Where the jobs come from.
        is_running: Whether a job runs in this worker, in whichever process.
        wait: Seconds that a job waits before it is looked at.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        broker: Broker,
        is_running: Callable[[str], bool],
        *,
        wait: float = WAIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._is_running = is_running
        self._wait = wait
        self._clock = clock
        self._waiting: deque[tuple[float, ClaimedMessage]] = deque()  # when it is looked at
        self._cleared: deque[tuple[float, ClaimedMessage]] = deque()  # since when it may start
        self._last_cleared: dict[str, float] = {}  # when each job was, as long as that matters

    def __len__(self) -> int:
        return len(self._waiting) + len(self._cleared)

    def concerns(self, message: ClaimedMessage) -> bool:
        """Whether a message that was just claimed has to wait here."""
        return message.delivery.redelivered and not self._broker.driver.claims_are_leases

    def hold(self, message: ClaimedMessage) -> None:
        """Have a message wait."""
        self._waiting.append((self._clock() + self._wait, message))

    def patience(self) -> float:
        """Seconds until there is something to look at."""
        if not self._waiting:
            return float("inf")
        return max(0.0, min(due for due, _ in self._waiting) - self._clock())

    def take(self, limit: int) -> list[ClaimedMessage]:
        """Up to so many that may start now."""
        if self._waiting:
            self._look()
        taken: list[ClaimedMessage] = []
        while self._cleared and len(taken) < limit:
            taken.append(self._cleared.popleft()[1])
        return taken

    def surplus(self) -> list[ClaimedMessage]:
        """What might have started for a while, and found no thread."""
        given: list[ClaimedMessage] = []
        while self._cleared and self._clock() - self._cleared[0][0] > _HOARD:
            given.append(self._cleared.popleft()[1])
        return given

    def close(self) -> list[ClaimedMessage]:
        """All that waits: it waits no more."""
        left = [message for _, message in (*self._waiting, *self._cleared)]
        self._waiting.clear()
        self._cleared.clear()
        return left

    def _look(self) -> None:
        now = self._clock()
        self._last_cleared = {
            job_id: at for job_id, at in self._last_cleared.items() if now - at < _HOARD + self._wait
        }
        for _ in range(len(self._waiting)):
            due, message = self._waiting.popleft()
            if due > now:
                self._waiting.append((due, message))
            elif not message.intake.holds(message.delivery):
                log.info("a redelivered job is somebody else's by now", job_id=message.message_id)
            elif self._may_start(message):
                self._cleared.append((now, message))
                self._last_cleared[message.message_id] = now
            else:
                self._waiting.append((now + _LOOK_AGAIN, message))

    def _may_start(self, message: ClaimedMessage) -> bool:
        if self._is_running(message.message_id):
            return False
        if message.message_id in self._last_cleared:
            return False  # another copy of it is about to start here, or just has
        if self._broker.store is None:
            return True
        try:
            return self._broker.store.key_owner(lease_key(message.message_id)) is None
        except StoreUnavailable:
            return False
