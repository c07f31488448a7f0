"""Turns the ticks of schedules into jobs.

A tick is a moment at which a schedule is due. Each makes one job, however many schedulers run; see
`callboard.brokers.ticks`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from callboard.actor import JobActor
from callboard.brokers.base import Broker
from callboard.brokers.ticks import tick_id
from callboard.cron import Cron
from callboard.errors import CallboardError, FateUnknown, SendError, StoreUnavailable
from callboard.loggers import get_logger
from callboard.operations.schedulers import say_alive, say_stopped
from callboard.process import worker_name
from callboard.store.base import Store

log = get_logger(__name__)

#: A tick that can't be sent or is in another scheduler's hands is looked at again after so many seconds,
_AGAIN = 1.0
#: and given up, with a line in the log, when it is so old.
_TOO_LATE = 300.0
#: The longest sleep: clocks may be set meanwhile.
_LONGEST_SLEEP = 20.0


@dataclass(slots=True, eq=False)
class _Schedule:
    actor: JobActor[..., Any]
    cron: Cron
    due: datetime  # the next tick that isn't dealt with
    not_before: float = 0.0  # when to look at it again


class Scheduler:
    """Sends the jobs of the actors that have a schedule (`periodic=cron(...)`), from now on.

    Args:
        broker: Where the actors are declared.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._ticks = broker.ticks()
        self._me = f"scheduler:{worker_name()}"
        now = datetime.fromtimestamp(broker.clock(), UTC)
        self._schedules = [
            _Schedule(actor, cron, cron.next_after(now)) for actor, cron in scheduled_actors(broker)
        ]

    def run(self, stop: threading.Event) -> None:
        """Serve the ticks until the event is set."""
        log.info(
            "scheduler started",
            schedules={schedule.actor.actor_name: schedule.cron.explain() for schedule in self._schedules},
        )
        self._say(say_alive)
        while not stop.wait(self._patience()):
            self._say(say_alive)
            self.serve()
        self._say(say_stopped)

    def _say(self, say: Callable[[Store, str], None]) -> None:
        if self._broker.store is not None:
            with suppress(StoreUnavailable):
                say(self._broker.store, self._me)

    def serve(self) -> list[str]:
        """Send what is due now; returns the ids of the jobs that were sent."""
        sent = []
        for schedule in self._schedules:
            while (now := self._broker.clock()) >= max(schedule.due.timestamp(), schedule.not_before):
                job_id = tick_id(schedule.actor, schedule.due)
                outcome = self._tick(schedule, job_id)
                if outcome == "again" and now - schedule.due.timestamp() < _TOO_LATE:
                    schedule.not_before = now + _AGAIN
                    break
                if outcome == "again":
                    log.error("tick given up: it couldn't be sent in time", job_id=job_id)
                elif outcome == "sent":
                    sent.append(job_id)
                schedule.due, schedule.not_before = schedule.cron.next_after(schedule.due), 0.0
        return sent

    def _patience(self) -> float:
        now = self._broker.clock()
        times = [max(schedule.due.timestamp(), schedule.not_before) for schedule in self._schedules]
        return min(_LONGEST_SLEEP, max(0.0, min(times, default=now + _LONGEST_SLEEP) - now))

    def _tick(self, schedule: _Schedule, job_id: str) -> str:
        """Make one tick's job: 'sent', 'taken' by another scheduler, or 'again' later."""
        try:
            with self._ticks.held(schedule.actor) as mine:
                if self._ticks.is_done(job_id):
                    return "taken"
                if not mine:
                    return "again"  # in another's hands: if that one dies, the tick is ours
                self._ticks.send(schedule.actor, schedule.due)
        except FateUnknown as error:
            # It may be queued. Sending it again could run it twice; not sending it, not at all: the id is the same.
            log.warning("tick sent once more: its fate is unknown", job_id=job_id, error=str(error))
            return "again"
        except (StoreUnavailable, SendError) as error:
            log.warning("tick not sent yet", job_id=job_id, error=str(error))
            return "again"
        except CallboardError:
            log.exception("tick can't be sent", job_id=job_id)
            return "taken"
        log.info("tick sent", job_id=job_id)
        return "sent"


def scheduled_actors(broker: Broker) -> Iterator[tuple[JobActor[..., Any], Cron]]:
    """The actors that start by themselves, with their schedules."""
    for actor in broker.actors.values():
        schedule = actor.options.get("periodic")
        if isinstance(actor, JobActor) and isinstance(schedule, Cron):
            yield actor, schedule


def run_scheduler(broker: Broker, stop: threading.Event) -> None:
    """Serve the broker's schedules until the event is set: what `callboard dev` runs beside its workers."""
    Scheduler(broker).run(stop)
