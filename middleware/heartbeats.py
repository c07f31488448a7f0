"""Says that a worker lives, which queues it consumes and what it runs."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.process import worker_name
from callboard.store.base import Heartbeat

log = get_logger(__name__)

_LAST_WORD = 2.0  # seconds that a stopping worker waits for the store to hear that it stops


class Heartbeats(Middleware):
    """Writes a sign of life into the store every few seconds.

    Args:
        interval: Seconds between two.
    """

    def __init__(self, *, interval: float = 3.0) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.store is None:
            return
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._beat, args=(broker, worker), name="callboard-heartbeats", daemon=True
        )
        self._thread.start()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        # Not before: while running jobs finish, somebody may want to know who runs them.
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LAST_WORD)

    def _beat(self, broker: CallboardBroker, worker: Any) -> None:
        assert broker.store is not None
        started, away = time.time(), False
        while True:
            try:
                broker.store.beat(
                    Heartbeat(
                        worker=worker_name(),
                        at=time.time(),
                        started_at=started,
                        host=socket.gethostname(),
                        pid=os.getpid(),
                        queues=_queues(broker, worker),
                        threads=getattr(worker, "threads", 0) or getattr(worker, "worker_threads", 0),
                        running=tuple(message.message_id for message in list(broker.running.values())),
                        claimed=int(getattr(worker, "claimed", 0)),
                    )
                )
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("no heartbeats: the store is away", error=str(error))
                away = True
            if self._stop.wait(self._interval):
                break
        try:
            broker.store.stopped(worker_name())
        except StoreUnavailable:
            log.debug("the store is away, the heartbeat goes stale by itself")


def _queues(broker: CallboardBroker, worker: Any) -> tuple[str, ...]:
    names = getattr(worker, "queue_names", None)
    if names is None:  # Dramatiq's own worker: its list, or all
        names = getattr(worker, "consumer_whitelist", None) or broker.queues
    return tuple(sorted(names))
