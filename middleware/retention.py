"""Forgets jobs that ended long ago."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.process import worker_name

log = get_logger(__name__)

_BATCH = 5_000


class Retention(Middleware):
    """Removes the records of jobs that ended longer ago than `keep`, one worker of all once an hour.

    Dead letters stay, whatever their age: they go when somebody replays or discards them.
    """

    def __init__(self, *, keep: timedelta, every: timedelta = timedelta(hours=1)) -> None:
        self._keep = keep.total_seconds()
        self._every = every.total_seconds()
        self._stop = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        self._stop.clear()
        if broker.store is not None:
            threading.Thread(
                target=self._sweep_for_ever, args=(broker,), name="callboard-retention", daemon=True
            ).start()

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        self._stop.set()

    def _sweep_for_ever(self, broker: CallboardBroker) -> None:
        while not self._stop.wait(min(60.0, self._every)):
            try:
                self.sweep(broker)
            except StoreUnavailable as error:
                log.warning("old records stay a while longer: the store is away", error=str(error))

    def sweep(self, broker: CallboardBroker) -> int:
        """Remove what is too old, unless a worker has done so within the hour; returns how many went."""
        store = broker.store
        if store is None or store.key_owner("retention") is not None:
            return 0
        me = worker_name()
        if store.claim_key("retention", me, ttl=self._every, durable=False) != me:
            return 0
        removed = 0
        before = broker.clock() - self._keep
        while gone := store.remove_ended(before=before, limit=_BATCH):
            removed += gone
            if self._stop.wait(0.1):  # others write, too
                break
        if removed:
            log.info("old records removed", count=removed)
        return removed
