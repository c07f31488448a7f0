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
from callboard.loggers import get_logger

if TYPE_CHECKING:
    from callboard.brokers.base import Broker


log = get_logger(__name__)


class Consumer(dramatiq.Consumer):
    """Hands out received messages, and settles each by its disposition, whether it is acked or nacked.

    While its queue is paused it claims nothing and hands out nothing.
    """

    def __init__(self, broker: Broker, intake: Intake, *, queue: str, prefetch: int, timeout: float) -> None:
        self._broker = broker
        self._intake = intake
        self._queue = queue
        self._prefetch = prefetch
        self._timeout = timeout
        self._fetched: deque[Delivery] = deque()
        self._stopped = threading.Event()
        self._paused: bool | None = None  # as the intake was told; it may have changed since it was opened

    def wake(self) -> None:
        """Look now whether the queue is paused."""
        self._intake.wake()

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
        self._obey_pauses()
        if not self._fetched:
            self._fetched.extend(self._intake.fetch(self._prefetch, self._timeout))
            if not self._fetched:
                return None
        return self._receive(self._fetched.popleft())

    def _obey_pauses(self) -> None:
        paused = self._broker.is_paused(self._queue)
        if paused is not self._paused:
            self._intake.pause(frozenset([self._queue]) if paused else frozenset())
            self._paused = paused
        if paused and self._fetched:
            self._intake.give_back(self._fetched)
            self._fetched.clear()

    def _receive(self, delivery: Delivery) -> MessageProxy | None:
        try:
            return self._broker.receive(delivery, self._intake)
        except Exception:
            # Raised, it would make Dramatiq close this consumer, and with it the claims of jobs that run.
            log.exception(
                "a message can't be received, it stays claimed until this worker ends", queue=delivery.queue
            )
            return None

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
        running = [m.message_id for m in list(self._broker.running.values()) if m.intake is self._intake]
        if running:  # they outlast the shutdown's timeout: to let go of them now would run them twice at once
            log.warning("jobs that run on stay claimed until this process ends", jobs=running)
            self._intake.pause(frozenset([self._queue]))
        else:
            self._intake.close()
