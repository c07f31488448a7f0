"""A worker's copy of what is asked of workers: paused queues and cancelled jobs, at most a second old."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.store.base import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from callboard.store.base import ControlBell, Store

log = get_logger(__name__)

#: Seconds between two looks at most, while the store is away.
_AWAY = 0.5

_NOTHING_ASKED = Control(version=-1, paused=frozenset(), cancelled={})


class ControlWatch:
    """Watches a store's control from a thread, and keeps it in memory.

    It looks twice a second, and at once where the store tells of changes. While the store can't be read, what was
    last known holds.

    Parameters:
        store: Where from.
        interval: Seconds between two looks.
        on_change: Called in the watch's thread with each new control.
    """

    def __init__(
        self, store: Store, *, interval: float = 0.5, on_change: Callable[[Control], None] | None = None
    ) -> None:
        self.on_change = on_change
        self._store = store
        self._interval = interval
        self._control = _NOTHING_ASKED
        self._away = False
        self._back = float("-inf")  # since when the store isn't away any more, in monotonic seconds
        self._stop = threading.Event()
        self._bell: ControlBell | None = None
        self._thread: threading.Thread | None = None

    @property
    def paused(self) -> frozenset[str]:
        """The queues that nothing is to be claimed from."""
        return self._control.paused

    @property
    def cancelled(self) -> Mapping[str, float]:
        """The jobs that are not to run, and when that was asked for."""
        return self._control.cancelled

    @property
    def is_current(self) -> bool:
        """Whether the store could be read the last time."""
        return not self._away and self._control is not _NOTHING_ASKED

    @property
    def steady_for(self) -> float:
        """For how many seconds the store hasn't been away, as far as somebody has looked."""
        return 0.0 if self._away else time.monotonic() - self._back

    def start(self) -> None:
        """Look once now, and then from a thread. A second start does nothing."""
        if self._thread is None or not self._thread.is_alive():
            self.refresh()
            self._stop = threading.Event()
            self._bell = self._store.control_bell()
            self._thread = threading.Thread(
                target=self._watch, args=(self._stop, self._bell), name="callboard-control", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop looking. What is known stays."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if self._bell is not None:
            self._bell.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def refresh(self) -> None:
        """Look now. Never raises: an unreadable store changes nothing."""
        try:
            control = self._store.control(known_version=self._control.version)
        except StoreUnavailable as error:
            if not self._away:
                log.warning("control can't be read, what was last known holds", error=str(error))
            self._away = True
            return
        if self._away:
            log.info("control can be read again")
            self._back = time.monotonic()
            self._away = False
        if control is not None:
            self._control = control
            self._tell(control)

    def _watch(self, stop: threading.Event, bell: ControlBell | None) -> None:
        while not stop.is_set():
            # What rang while the store was away doesn't ring again.
            pause = min(self._interval, _AWAY) if self._away else self._interval
            if bell is not None:
                bell.wait(pause)
            else:
                stop.wait(pause)
            if not stop.is_set():
                self.refresh()
        if bell is not None:
            bell.close()

    def _tell(self, control: Control) -> None:
        if self.on_change is not None:
            try:
                self.on_change(control)
            except Exception:
                log.exception("a change of control wasn't taken in")
