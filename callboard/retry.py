"""When a failed job is tried again.

The wait before attempt n+1 is drawn evenly between nothing and min(cap, base * 2**(n-1)): "full jitter",
which spreads the retries of many jobs that failed together better than any narrower one (M. Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015). An error that says when to come back, by
`retry_after` or a response's Retry-After header, is taken at its word.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from callboard.errors import Permanent

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed job runs again.

    Attributes:
        attempts: Runs in all, the first one included.
        base: The longest wait before the second run; it doubles with each further one.
        cap: No wait is longer.
        jitter: Draw each wait evenly from nothing to its longest; without it, each is its longest.
        retry_on: Only these errors are tried again; by default all, time limits and `SystemExit` included.
        never_retry: These are not, whatever `retry_on` says.
    """

    attempts: int = 5
    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(hours=1)
    jitter: bool = True
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    never_retry: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"a job needs at least one attempt, not {self.attempts}")
        if self.base <= timedelta(0) or self.cap < self.base:
            raise ValueError(
                f"waits must grow from a base above zero to a cap, not from {self.base} to {self.cap}"
            )

    def may_retry(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another run."""
        if isinstance(error, (Permanent, *self.never_retry)):
            return False
        return isinstance(error, self.retry_on)

    def wait(
        self, attempt: int, error: BaseException | None = None, *, now: float | None = None
    ) -> timedelta:
        """How long to wait after a failed attempt.

        Args:
            attempt: Which, counted from 1.
            error: What it failed of.
            now: Seconds since the epoch, for an error that names the moment to come back; by default the time of
                this machine.
        """
        if error is not None and (asked := retry_after(error, now)) is not None:
            return min(asked, max(self.cap, _DAY))
        seconds = min(self.cap.total_seconds(), self.base.total_seconds() * 2.0 ** min(attempt - 1, 60))
        if self.jitter:
            seconds = random.uniform(0, seconds)  # noqa: S311  jitter, no secret
        return timedelta(seconds=seconds)


def retry_after(error: BaseException, now: float | None = None) -> timedelta | None:
    """When an error asks to come back: its `retry_after` (seconds, timedelta or aware datetime), or the
    Retry-After header of its `response` (RFC 9110, 10.2.3: seconds or an HTTP date)."""
    asked = getattr(error, "retry_after", None)
    if asked is None:
        headers = getattr(getattr(error, "response", None), "headers", None)
        asked = headers.get("Retry-After") if headers is not None and hasattr(headers, "get") else None
    return _as_wait(asked, time.time() if now is None else now)


def _as_wait(asked: object, now: float) -> timedelta | None:
    try:
        if isinstance(asked, str):
            asked = float(asked) if asked.strip().isdigit() else parsedate_to_datetime(asked)
        if isinstance(asked, datetime):
            asked = asked - datetime.fromtimestamp(now, UTC)
        if isinstance(asked, int | float) and not isinstance(asked, bool):
            asked = timedelta(seconds=asked)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(asked, timedelta(0)) if isinstance(asked, timedelta) else None
