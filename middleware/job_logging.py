"""Logs how jobs end. Every line of a running job carries its id: see `callboard.logs`."""

from __future__ import annotations

import logging
from typing import Any

from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import DONE, Die, Drop, Finish, GiveBack, Later, Merge
from callboard.loggers import get_logger
from callboard.states import State

log = get_logger("callboard.jobs")
_told_of_successes = logging.getLogger("callboard.jobs")


class JobLogging(Middleware):
    """One line for each job that doesn't simply succeed; at level debug for those that do."""

    def after_ack(self, broker: Broker, message: Any) -> None:
        disposition = message.disposition
        if disposition is DONE and not _told_of_successes.isEnabledFor(logging.DEBUG):
            return  # to find that out below takes longer than many a job
        line = log.bind(job_id=message.message_id, actor=message.actor_name, attempt=message.attempt)
        if isinstance(disposition, Finish):
            if disposition.state is State.SUCCEEDED:
                line.debug(f"{message.actor_name} succeeded{_duration(message)}")
            else:
                line.info(f"job {disposition.state}", reason=disposition.reason)
        elif isinstance(disposition, Later):
            if disposition.state is State.RETRYING:
                assert isinstance(broker, CallboardBroker)
                wait = max(0.0, disposition.due - broker.clock())
                event = "job failed, tried again" if disposition.failed_run is not None else "job comes again"
                line.warning(event, reason=disposition.reason, wait=round(wait, 1))
            elif disposition.state is State.SNOOZED:
                # One that waits for its turn looks again and again: a line for each time would drown all others.
                tell = line.debug if disposition.slot == disposition.due else line.info
                tell("job snoozed", reason=disposition.reason)
        elif isinstance(disposition, Die):
            line.error("job dead", reason=disposition.reason, exception=disposition.traceback or None)
        elif isinstance(disposition, GiveBack):
            line.info("job given back, the attempt doesn't count")
        elif isinstance(disposition, Drop):
            line.warning("claim lost, the job runs elsewhere")
        elif isinstance(disposition, Merge):
            line.info("a copy of a message went, its job has gone further already")

    after_nack = after_ack


def _duration(message: Any) -> str:
    """', 7 ms', or nothing where `JobMetrics` isn't in the stack, which measures it."""
    seconds = message.__dict__.get("metrics_seconds")
    if seconds is None:
        return ""
    if seconds < 1:
        return f", {seconds * 1000:.0f} ms" if seconds >= 0.001 else ", under 1 ms"
    return f", {seconds:.1f} s"
