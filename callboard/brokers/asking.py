"""What the intakes of `file:` and `redis:` have in common: they ask for messages, which to RabbitMQ's come unasked.

A `fetch` asks, and sleeps until there is something to ask for. Acks are gathered, and the next question takes them
along. While the broker is away it is asked again and again, which is logged once when it goes and once when it is back.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Sized
from typing import ClassVar

from callboard.brokers.driver import Delivery, Intake
from callboard.brokers.outage import Outage
from callboard.errors import BrokerUnavailable


class AskingIntake(Intake):
    """An intake that asks. Its subclass says how."""

    #: The errors that say that the broker is away.
    away: ClassVar[tuple[type[Exception], ...]] = (BrokerUnavailable,)

    _acks: Sized
    _returns: Sized

    def _reset(self) -> None:
        """The state of one that has asked nothing yet."""
        self._fetching = threading.Lock()
        self._applying = threading.Lock()  # held while claims are changed
        self._given = threading.Event()  # there are acks
        self._armed = False  # they will be applied, even if nobody fetches
        self._alarm = threading.Event()  # `wake` was called
        self._full = False  # at the last question, the budget was
        self._closed = False
        self._outage = Outage()

    def forked(self) -> None:
        """The claims are the parent's."""
        self._reset()
        self._closed = True

    # -- what subclasses say

    @abstractmethod
    def _attempt(self, limit: int, end: float) -> list[Delivery]:
        """Claim; if there is nothing, wait until there is."""

    @abstractmethod
    def _apply(self) -> None:
        """Let go of what was given; the caller has `_applying`."""

    @abstractmethod
    def _next_try(self) -> float:
        """Seconds to wait before a broker that is away is asked again."""

    def _explain(self, error: Exception) -> str:
        """Why it is away."""
        return str(error)

    def _interrupted(self) -> None:
        """A `fetch` ends with nothing, because `wake` was called."""

    # -- asking

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        end = time.monotonic() + timeout
        with self._fetching:
            while not self._closed:
                try:
                    found = self._attempt(limit, end)
                except self.away as error:
                    found = self._wait_out(error, end)
                else:
                    self._recovered()
                if found or self._is_over(end):
                    if self._alarm.is_set():
                        self._alarm.clear()
                        if not found:
                            self._interrupted()
                    return found
        return []

    def _is_over(self, end: float) -> bool:
        return self._alarm.is_set() or self._closed or time.monotonic() >= end

    def flush(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while self._acks or self._returns:
            if not self._applying.acquire(timeout=max(0.0, end - time.monotonic())):
                return False
            try:
                self._apply()
            except self.away as error:
                self._failed(error)
                if time.monotonic() + 0.1 > end:
                    return False
                time.sleep(0.1)
            finally:
                self._applying.release()
            if self._closed:
                return not self._acks
        with self._applying:
            return True

    # -- outages

    def _wait_out(self, error: Exception, end: float) -> list[Delivery]:
        self._failed(error)
        self._alarm.wait(min(self._next_try(), max(0.0, end - time.monotonic())))
        return []

    def _failed(self, error: Exception) -> None:
        if not self._closed:
            self._outage.begin(self._explain(error))

    def _recovered(self) -> None:
        self._outage.end()
