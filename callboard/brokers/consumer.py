"""What Dramatiq's own worker consumes: one queue of an intake, behind Dramatiq's interface."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import dramatiq
from dramatiq.broker import MessageProxy

from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.driver import Delivery, Intake

if TYPE_CHECKING:
    from callboard.brokers.base import Broker


class Consumer(dramatiq.Consumer):
    """Hands out received messages, and settles each by its disposition, whether it is acked or nacked."""

    def __init__(self, broker: Broker, intake: Intake, *, queue: str, prefetch: int, timeout: float) -> None:
        self._broker = broker
        self._intake = intake
        self._queue = queue
        self._prefetch = prefetch
        self._timeout = timeout
        self._fetched: deque[Delivery] = deque()
        self._stopped = threading.Event()

    def stop_claiming(self) -> None:
        """Fetch nothing more, and give back what isn't handed out yet. Acks still go through."""
        self._stopped.set()
        self._intake.pause(frozenset([self._queue]))
        self._intake.wake()

    def __next__(self) -> MessageProxy | None:
        if self._stopped.is_set():
            self._intake.give_back(self._fetched)
            self._fetched.clear()
            self._intake.flush(self._timeout)
            time.sleep(0.01)
            return None
        if not self._fetched:
            self._fetched.extend(self._intake.fetch(self._prefetch, self._timeout))
            if not self._fetched:
                return None
        return self._broker.receive(self._fetched.popleft(), self._intake)

    def ack(self, message: MessageProxy) -> None:
        assert isinstance(message, ClaimedMessage)
        self._broker.settle(message)

    def nack(self, message: MessageProxy) -> None:
        assert isinstance(message, ClaimedMessage)
        self._broker.settle(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._intake.give_back(
            m.delivery for m in messages if isinstance(m, ClaimedMessage) and not m.settled
        )

    def close(self) -> None:
        self._intake.give_back(self._fetched)
        self._fetched.clear()
        self._intake.close()
