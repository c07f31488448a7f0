"""Schedules: when they are due, what became of their ticks; pausing, resuming and running them now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import islice
from typing import Any

from callboard.actor import JobActor
from callboard.brokers.base import Broker
from callboard.brokers.ticks import schedule_of, scheduled_actors
from callboard.cron import Cron
from callboard.errors import NotPossible, StoreUnavailable, UnknownActor
from callboard.operations.audit import Audit
from callboard.store.base import ScheduleState, Store, Tick

_DATES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatus:
    """A schedule.

    Attributes:
        name: Its actor's.
        cron: When it is due.
        text: The same in plain language.
        state: What the store knows of it.
        dates: The next five ticks, in the schedule's zone.
        ticks: What became of past ones, the newest first.
    """

    name: str
    cron: Cron
    text: str
    state: ScheduleState
    dates: tuple[datetime, ...]
    ticks: tuple[Tick, ...]

    @property
    def paused(self) -> bool:
        """Whether its ticks are skipped."""
        return self.state.paused_at is not None


class Schedules:
    """The schedules of a broker's actors.

    Args:
        broker: Where they are declared.
        audit: Where acts are written down.
    """

    def __init__(self, broker: Broker, audit: Audit) -> None:
        self._broker = broker
        self._audit = audit

    def search(self) -> list[ScheduleStatus]:
        """All schedules by name, each with what became of its last tick.

        Raises:
            StoreUnavailable
        """
        states = self._store().schedules()
        actors = sorted(scheduled_actors(self._broker), key=lambda actor: actor.actor_name)
        return [self._status(actor, states, ticks=1) for actor in actors]

    def show(self, name: str, *, limit: int = 20) -> ScheduleStatus:
        """One schedule, with what became of its newest ticks.

        Raises:
            UnknownActor: There is no such actor.
            NotPossible: It has no schedule.
            StoreUnavailable
        """
        return self._status(self._actor(name), self._store().schedules(), ticks=limit)

    def pause(self, name: str) -> str:
        """Skip a schedule's ticks, until it is resumed; each is written down. Returns the schedule's name.

        Raises:
            UnknownActor, NotPossible, StoreUnavailable: See `show`.
        """
        actor_name = self._actor(name).actor_name
        self._store().pause_schedule(actor_name, at=self._broker.clock(), by=self._audit.who)
        self._audit.done("pause schedule", actor_name)
        return actor_name

    def resume(self, name: str) -> str:
        """Undo a pause: from the next tick on, jobs are sent. Returns the schedule's name.

        Raises:
            UnknownActor, NotPossible, StoreUnavailable: See `show`.
        """
        actor_name = self._actor(name).actor_name
        self._store().pause_schedule(actor_name, at=None)
        self._audit.done("resume schedule", actor_name)
        return actor_name

    def run(self, name: str) -> str:
        """Send a schedule's job now, paused or not. Returns the job's id.

        Raises:
            UnknownActor, NotPossible: See `show`.
            SendError: It wasn't queued, or may or may not be.
        """
        actor = self._actor(name)
        job_id = self._broker.ticks().run_now(actor, by=self._audit.who).message_id
        self._audit.done("run schedule", actor.actor_name, job_id=job_id)
        return job_id

    def _status(
        self, actor: JobActor[..., Any], states: dict[str, ScheduleState], *, ticks: int
    ) -> ScheduleStatus:
        name, cron = actor.actor_name, schedule_of(actor)
        return ScheduleStatus(
            name=name,
            cron=cron,
            text=cron.explain(),
            state=states.get(name) or ScheduleState(name),
            dates=tuple(islice(_dates(cron, datetime.fromtimestamp(self._broker.clock(), UTC)), _DATES)),
            ticks=tuple(self._store().ticks(name, limit=ticks)),
        )

    def _actor(self, name: str) -> JobActor[..., Any]:
        scheduled = {actor.actor_name: actor for actor in scheduled_actors(self._broker)}
        try:
            found = self._broker.find_actor(name).actor_name
        except UnknownActor as error:
            if near := get_close_matches(name, scheduled, n=1, cutoff=0.5):
                raise UnknownActor(name, near) from error
            raise
        if found not in scheduled:
            known = ", ".join(sorted(scheduled)) or "none"
            raise NotPossible(f"'{found}' has no schedule; those that have: {known}")
        return scheduled[found]

    def _store(self) -> Store:
        if self._broker.store is None:
            raise StoreUnavailable("schedules need a store, and this broker has none")
        return self._broker.store


def _dates(cron: Cron, after: datetime) -> Any:
    while True:
        after = cron.next_after(after)
        yield after
