"""The clock of a test, which stands."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta


class Clock:
    """A clock that stands until it is moved. Queues, retries, deadlines, keys and records go by it.

    It begins at the next whole second of real time.
    """

    def __init__(self) -> None:
        self._seconds = float(math.ceil(time.time()))

    def __call__(self) -> float:
        return self._seconds

    def __repr__(self) -> str:
        return f"<Clock {self.now.isoformat()}>"

    @property
    def now(self) -> datetime:
        """The moment at which it stands, in UTC."""
        return datetime.fromtimestamp(self._seconds, UTC)

    def advance(self, by: timedelta) -> None:
        """Move it on.

        Raises:
            ValueError: If that were backwards.
        """
        if by < timedelta(0):
            raise ValueError(f"time can't go back by {-by}")
        self._seconds += by.total_seconds()

    def advance_to(self, moment: datetime) -> None:
        """Move it on to a moment, which is aware.

        Raises:
            ValueError: If that were backwards.
        """
        self.advance(moment - self.now)

    def reach(self, seconds: float) -> None:
        """Move it on to so many seconds since 1970; it stays where it is if they have passed."""
        self._seconds = max(self._seconds, seconds)
