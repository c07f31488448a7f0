"""Ends runs that take too long."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.middleware import TimeLimitExceeded

from callboard.brokers.base import Broker as CallboardBroker


class TimeLimits(Middleware):
    """Raises `TimeLimitExceeded` in an actor's body when its time is over.

    The exception reaches Python code only: a run that sits in a C call or in `time.sleep` sees it when
    that returns.

    Args:
        default: For actors that don't say `time_limit=`, a timedelta or, as in Dramatiq, milliseconds.
        interval: How often runs are looked at.
    """

    def __init__(
        self, *, default: timedelta = timedelta(minutes=10), interval: timedelta = timedelta(seconds=0.25)
    ) -> None:
        self._default = default.total_seconds()
        self._interval = interval.total_seconds()
        self._stop = threading.Event()

    @property
    def actor_options(self) -> set[str]:
        return {"time_limit"}

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        self._stop.clear()
        threading.Thread(
            target=self._watch, args=(broker,), name="callboard-time-limits", daemon=True
        ).start()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        self._stop.set()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        limit = message.options.get("time_limit")
        if limit is None:
            limit = broker.actors[message.actor_name].options.get("time_limit")
        seconds = self._default if limit is None else _seconds(limit)
        if seconds != math.inf:
            message.run.time_limit = seconds

    def _watch(self, broker: CallboardBroker) -> None:
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            for message in list(broker.running.values()):
                run = message.run
                if run is None or run.time_limit is None or now < run.started + run.time_limit:
                    continue
                if run.interrupt(TimeLimitExceeded):
                    broker.report_event(run, f"interrupted at its time limit of {run.time_limit:g} s")


def _seconds(limit: timedelta | float) -> float:
    return limit.total_seconds() if isinstance(limit, timedelta) else limit / 1000
