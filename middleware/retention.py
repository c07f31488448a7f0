"""Forgets jobs that ended long ago, and the oldest where there are very many."""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from typing import Any

from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.process import worker_name
from callboard.states import State
from callboard.store.base import Store

log = get_logger(__name__)

_BATCH = 5_000


class Retention(Middleware):
    """Removes the records of jobs that ended longer ago than `keep`, and of more than `keep_most` that have ended
    the oldest; one worker of all does, every few minutes.

    Dead letters stay, whatever their age, and aren't counted: they go when somebody replays or discards them.
    """

    def __init__(
        self, *, keep: timedelta, keep_most: int = 1_000_000, every: timedelta = timedelta(minutes=5)
    ) -> None:
        self._keep = keep.total_seconds()
        self._keep_most = keep_most
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
        """Remove what is too old, and too much, unless a worker has just done so; returns how many went."""
        store = broker.store
        if store is None or store.key_owner("retention") is not None:
            return 0
        me = worker_name()
        if store.claim_key("retention", me, ttl=self._every, durable=False) != me:
            return 0
        now = broker.clock()
        removed = self._remove(store, before=now - self._keep)
        counts = store.count_by_state()
        ended = sum(count for state, count in counts.items() if state.is_end and state is not State.DEAD)
        if ended > self._keep_most:
            removed += self._remove(store, before=now, most=ended - self._keep_most)
        if removed:
            log.info("old records removed", count=removed)
        return removed

    def _remove(self, store: Store, *, before: float, most: float = math.inf) -> int:
        removed = 0
        while removed < most and (
            gone := store.remove_ended(before=before, limit=int(min(_BATCH, most - removed)))
        ):
            removed += gone
            if self._stop.wait(0.1):  # others write, too
                break
        return removed
