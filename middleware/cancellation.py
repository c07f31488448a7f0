"""Keeps cancelled jobs from starting, and ends those that run.

The life of a cancellation, for a job that waits: the first worker that takes its message ends it. For one that runs:
within a second its worker knows, and `current_job().cancelled()` is true. The job has the grace to tidy up and stop.
Then `Cancelled` is raised in its body. Whatever it raises once its worker knows is no failure of its own: it ends as
cancelled, uses no attempt, and isn't tried again. A job that succeeds instead has succeeded, and its record says that
the cancellation came too late. Each step is a line of the job's story.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.middleware import SkipMessage

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import ClaimedMessage, Finish
from callboard.context import Cancelled, Run
from callboard.errors import text_of
from callboard.states import State


class Cancellation(Middleware):
    """A job that was cancelled before its start never starts; a running one is told, and then interrupted.

    The exception reaches Python code only: a run that sits in a C call or in `time.sleep` sees it when that
    returns.

    Args:
        grace: How long a run may take to stop by itself, for actors that don't say `cancel_grace=`, a timedelta.
        interval: How often runs are looked at.
    """

    idle_without: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        grace: timedelta = timedelta(seconds=10),
        interval: timedelta = timedelta(seconds=0.25),
    ) -> None:
        self._grace = grace.total_seconds()
        self._interval = interval.total_seconds()
        self._stop = threading.Event()

    @property
    def actor_options(self) -> set[str]:
        return {"cancel_grace"}

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        self._stop = threading.Event()
        threading.Thread(
            target=self._watch, args=(broker, self._stop), name="callboard-cancellations", daemon=True
        ).start()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        self._stop.set()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.is_cancelled(message.message_id):
            message.disposition = Finish(State.CANCELLED, reason="cancelled before it started")
            raise SkipMessage("cancelled")

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        assert isinstance(broker, CallboardBroker)
        if message.disposition is not None:
            return
        if isinstance(exception, Cancelled):
            message.disposition = Finish(State.CANCELLED, reason=self._how(broker, message, exception))
        elif exception is None and broker.is_cancelled(message.message_id):
            message.disposition = Finish(
                State.SUCCEEDED, reason="its cancellation came too late: it had succeeded"
            )

    # -- running jobs --------------------------------------------------------------------------------------

    def _watch(self, broker: CallboardBroker, stop: threading.Event) -> None:
        seen: dict[Run, float] = {}  # runs that are to end -> when that was known here
        while not stop.wait(self._interval):
            running = [
                (message, message.run)
                for message in list(broker.running.values())
                if message.run is not None and broker.is_cancelled(message.message_id)
            ]
            now = time.monotonic()
            seen = {run: seen.get(run, -1.0) for _, run in running}
            for message, run in running:
                self._stop_run(broker, message, run, seen, now)

    def _stop_run(
        self, broker: CallboardBroker, message: ClaimedMessage, run: Run, seen: dict[Run, float], now: float
    ) -> None:
        grace = self._grace_of(broker, message)
        if seen[run] < 0:
            seen[run] = now
            broker.report_event(
                run, f"told that it is cancelled; it is interrupted if it runs on for {grace:g} s"
            )
        if now >= seen[run] + grace and run.interrupt(Cancelled):
            broker.report_event(run, f"interrupted, {grace:g} s after it was told that it is cancelled")

    def _grace_of(self, broker: CallboardBroker, message: ClaimedMessage) -> float:
        grace: timedelta | None = broker.actors[message.actor_name].options.get("cancel_grace")
        return self._grace if grace is None else grace.total_seconds()

    def _how(self, broker: CallboardBroker, message: ClaimedMessage, error: Cancelled) -> str:
        """What the cancellation did to the run."""
        cause = error.__cause__
        if message.run is not None and message.run.interrupted_by is Cancelled:
            return f"cancelled while it ran, and interrupted after {self._grace_of(broker, message):g} s"
        if cause is not None:
            return f"cancelled while it ran, and ended by {type(cause).__name__}: {text_of(cause, limit=300)}"
        return "cancelled while it ran"
