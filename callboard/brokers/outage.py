"""An outage of the broker, as the log tells of it: once when it begins and once when it ends, whatever the driver.

The lines are `broker_unavailable`, with the reason, and `broker_available`, with how long it took. What else a driver
knows, such as which of its connections it is, goes along as fields.
"""

from __future__ import annotations

import time
from typing import Any

from callboard.loggers import get_logger

log = get_logger(__name__)


class Outage:
    """Whether the broker is away, for one of those who use it.

    Args:
        fields: What each line says beside.
    """

    def __init__(self, **fields: Any) -> None:
        self._fields = fields
        self._since: float | None = None

    def __bool__(self) -> bool:
        return self._since is not None

    def begin(self, reason: str) -> None:
        """The broker is away, which may be known already."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("broker_unavailable", reason=reason, **self._fields)

    def end(self, **fields: Any) -> None:
        """The broker answers, as it may have done all the time."""
        since, self._since = self._since, None
        if since is not None:
            away = round(time.monotonic() - since, 1)
            log.info("broker_available", away_seconds=away, **self._fields, **fields)
