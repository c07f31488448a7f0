"""Who did what: the trail of every act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.store.base import AuditEntry, Store

log = get_logger(__name__)


class Audit:
    """Writes the trail of one person or program.

    Args:
        store: Where the trail is kept.
        who: A user's name, or 'cli'.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: Store | None, who: str, clock: Callable[[], float]) -> None:
        self.who = who
        self._store = store
        self._clock = clock

    def announce(self, action: str, target: str, **details: Any) -> None:
        """Write down that something is about to be thrown away. What can't be audited is not to be done.

        Raises:
            StoreUnavailable: It couldn't be written, so don't.
        """
        if self._store is None:
            raise StoreUnavailable(f"'{action}' is audited, and this broker has no store to write that to")
        self._store.audit(self._entry(action, target, 0, {"step": "begun", **details}))

    def done(self, action: str, target: str, *, count: int = 1, **details: Any) -> bool:
        """Write down what was done. False if the store couldn't take it; the log has it then."""
        try:
            if self._store is not None:
                self._store.audit(self._entry(action, target, count, details))
                return True
        except StoreUnavailable as error:
            log.warning(
                "not audited: the store is away",
                who=self.who,
                action=action,
                target=target,
                count=count,
                error=str(error),
            )
        return False

    def _entry(self, action: str, target: str, count: int, details: dict[str, Any]) -> AuditEntry:
        return AuditEntry(
            at=self._clock(), actor=self.who, action=action, target=target, count=count, details=details
        )
