"""Turns the ticks of schedules into jobs, on time or, by each schedule's policy, later.

A tick is a moment at which a schedule is due. Each makes one job, however many schedulers run; see
`callboard.brokers.ticks`. The store knows up to when a schedule's ticks are dealt with. A scheduler that finds ticks
since then, because none ran or something was away, sends what `misfire` says and writes down that it missed the
others. A schedule that nobody has served begins now.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import Any

from callboard.actor import JobActor
from callboard.brokers.base import Broker
from callboard.brokers.ticks import paused_text, schedule_of, scheduled_actors, tick_id
from callboard.cron import Cron
from callboard.errors import CallboardError, FateUnknown, NotQueued, StoreUnavailable
from callboard.loggers import get_logger
from callboard.operations.schedulers import say_alive, say_stopped
from callboard.process import worker_name
from callboard.store.base import TICKS_KEPT, Fate, ScheduleState, Tick

log = get_logger(__name__)

#: A tick that is served within so many seconds is on time; later, it is for the misfire policy.
ON_TIME = 60.0
#: A schedule in another scheduler's hands, and one that couldn't be served, is looked at again after so many seconds.
_AGAIN = 1.0
#: The longest sleep: clocks may be set meanwhile.
_LONGEST_SLEEP = 20.0
#: More ticks than that aren't counted one by one: a schedule of every minute, after two weeks.
_COUNTED = 20_000
_RECENT = timedelta(days=7)
#: Ticks that are dealt with so far ahead, in seconds, were so by a clock that went wrong.
_FAR_AHEAD = 3600.0


@dataclass(slots=True, eq=False)
class _Schedule:
    actor: JobActor[..., Any]
    cron: Cron
    due: float = 0.0  # when to look at it
    error: str = ""  # why it couldn't be served the last time


@dataclass(slots=True, eq=False)
class Progress:
    """How a scheduler gets on. It writes, in its thread, and others read.

    Attributes:
        actors: Those that have a schedule.
        looked: When it last got further, in monotonic seconds.
        reached: When the store last answered, in monotonic seconds; None if it never has.
        store_error: Why the store didn't answer the last time; empty if it did.
        errors: Why schedules couldn't be served the last time, by actor.
        rounds: How often it has looked at all schedules.
        ticks: How many ticks had which fate, by actor and fate.
        lateness: Seconds from the tick to the send of the last job, by actor.
        paused: The actors whose schedules are paused.
    """

    actors: tuple[str, ...]
    looked: float
    reached: float | None = None
    store_error: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    ticks: Counter[tuple[str, Fate]] = field(default_factory=Counter)
    lateness: dict[str, float] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()

    def note(self, tick: Tick) -> None:
        """This became of a tick, or of several."""
        self.ticks[tick.schedule, tick.fate] += tick.count
        if tick.fate in (Fate.ON_TIME, Fate.CAUGHT_UP):
            self.lateness[tick.schedule] = max(0.0, tick.at - tick.due)


class Scheduler:
    """Sends the jobs of the actors that have a schedule (`periodic=cron(...)`).

    Args:
        broker: Where the actors are declared.
        clock: Monotonic seconds, for its progress.

    Attributes:
        progress: How it gets on.
    """

    def __init__(self, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._ticks = broker.ticks()
        self._me = f"scheduler:{worker_name()}"
        self._started = broker.clock()
        self._schedules = [_Schedule(actor, schedule_of(actor)) for actor in scheduled_actors(broker)]
        self._clock = clock
        names = tuple(schedule.actor.actor_name for schedule in self._schedules)
        self.progress = Progress(names, looked=clock())
        self._ticks.noted = self._note

    def run(self, stop: threading.Event) -> None:
        """Serve the ticks until the event is set."""
        log.info(
            "scheduler started",
            schedules={schedule.actor.actor_name: schedule.cron.explain() for schedule in self._schedules},
        )
        self._meet_store()
        while not stop.wait(self._patience()):
            self._meet_store()
            self.serve()
        with suppress(StoreUnavailable):
            say_stopped(self._ticks.store, self._me)

    def _meet_store(self) -> None:
        """Tell the others that this one lives, and see what is paused."""
        progress = self.progress
        try:
            store = self._ticks.store
            say_alive(store, self._me)
            paused = {state.name for state in store.schedules().values() if state.paused_at is not None}
        except StoreUnavailable as error:
            progress.store_error = str(error)
        else:
            progress.paused = frozenset(paused.intersection(progress.actors))
            self._got_further()

    def _note(self, tick: Tick) -> None:
        self.progress.note(tick)
        self._got_further()

    def _got_further(self, *, store_answered: bool = True) -> None:
        self.progress.looked = self._clock()
        if store_answered:
            self.progress.reached, self.progress.store_error = self.progress.looked, ""

    def _patience(self) -> float:
        now = self._broker.clock()
        next_due = min((schedule.due for schedule in self._schedules), default=now + _LONGEST_SLEEP)
        return min(_LONGEST_SLEEP, max(0.0, next_due - now))

    def serve(self) -> list[str]:
        """Deal with what is due now; returns the ids of the jobs that were sent."""
        sent: list[str] = []
        for schedule in self._schedules:
            now = self._broker.clock()
            if now < schedule.due:
                continue
            try:
                sent += self._serve(schedule, now)
            except (StoreUnavailable, NotQueued, FateUnknown) as error:
                if not schedule.error:
                    log.warning("ticks not served yet", schedule=schedule.actor.actor_name, error=str(error))
                schedule.error = str(error)
                schedule.due = now + _AGAIN
                self._got_further(store_answered=not isinstance(error, StoreUnavailable))
            else:
                self._got_further()
        self._got_further(store_answered=False)
        self.progress.errors = {s.actor.actor_name: s.error for s in self._schedules if s.error}
        self.progress.rounds += 1
        return sent

    def _serve(self, schedule: _Schedule, now: float) -> Iterable[str]:
        until = self._begun(schedule, now)
        if (due := schedule.cron.next_after(_date(until)).timestamp()) > now:
            schedule.due, schedule.error = due, ""
            return ()
        with self._ticks.held(schedule.actor) as mine:
            if mine:
                return list(self._catch_up(schedule, now))
        schedule.due = now + _AGAIN
        return ()

    def _begun(self, schedule: _Schedule, now: float) -> float:
        """Up to when a schedule's ticks are dealt with."""
        name, spec = schedule.actor.actor_name, str(schedule.cron)
        state = self._ticks.store.schedules().get(name) or ScheduleState(name)
        until = state.until
        if until is None:
            until = self._started
        elif until > now + _FAR_AHEAD:
            log.error("ticks of the future were dealt with: is a clock wrong?", schedule=name, until=until)
            until = now
        elif state.spec != spec:
            log.info("schedule changed", schedule=name, before=state.spec, now=spec)
            until = max(until, now - ON_TIME)
        else:
            return until
        self._ticks.store.begin_schedule(name, spec=spec, until=until)
        return until

    def _catch_up(self, schedule: _Schedule, now: float) -> Iterator[str]:
        """Deal with all ticks that are due, the oldest first; yields the ids of the jobs that were sent."""
        actor = schedule.actor
        state = self._ticks.store.schedules()[actor.actor_name]
        assert state.until is not None
        due = self._pending(schedule, state.until, now)
        fates = plan(schedule.cron, due, now)
        if state.paused_at is not None:
            fates = [(tick, Fate.PAUSED, paused_text(state)) for tick in due]
        for (fate, reason), group in groupby(fates, key=lambda step: step[1:]):
            ticks = [tick for tick, _, _ in group]
            if fate in (Fate.PAUSED, Fate.MISSED):
                self._skip(schedule, ticks, fate, reason)
                continue
            for tick in ticks:
                if not self._ticks.renew(actor):
                    schedule.due = now + _AGAIN
                    return
                if self._send(schedule, tick, fate):
                    yield tick_id(actor, tick)
        last = due[-1].timestamp() if due else now
        schedule.due = schedule.cron.next_after(_date(max(last, state.until))).timestamp()
        schedule.error = ""

    def _pending(self, schedule: _Schedule, until: float, now: float) -> list[datetime]:
        """The ticks that nobody has dealt with: periodiq may have, without having looked at those before."""
        told = self._ticks.told(schedule.actor)
        if len(told) == TICKS_KEPT:  # of those before nothing is known any more
            until = max(until, min(told))
        cron, end = schedule.cron, _date(now)
        due = list(islice(cron.ticks(_date(until), end), _COUNTED + 1))
        if len(due) > _COUNTED:
            recent = list(cron.ticks(end - _RECENT, end))
            old = [tick for tick in due if tick < recent[0]]
            self._skip(
                schedule,
                [*old, cron.floor(end - _RECENT)],
                Fate.MISSED,
                "not served in time, nor all counted",
            )
            due = recent
        return [tick for tick in due if tick.timestamp() not in told]

    def _skip(self, schedule: _Schedule, ticks: list[datetime], fate: Fate, reason: str) -> None:
        if fate is Fate.MISSED and schedule.error:
            reason += f"; {schedule.error}"
        due, count = ticks[-1].timestamp(), len(ticks)
        first = ticks[0].timestamp() if count > 1 else None
        self._ticks.note(schedule.actor, due, fate, reason=reason, first=first, count=count, until=due)
        tell = log.warning if fate is Fate.MISSED else log.info
        tell(
            f"tick {fate}", schedule=schedule.actor.actor_name, due=str(ticks[-1]), count=count, reason=reason
        )

    def _send(self, schedule: _Schedule, tick: datetime, fate: Fate) -> bool:
        actor, due = schedule.actor, tick.timestamp()
        try:
            sent = self._ticks.settle(actor, tick, fate, until=due)
        except (StoreUnavailable, NotQueued, FateUnknown):
            raise
        except CallboardError as error:
            log.exception("tick can't be sent", job_id=tick_id(actor, tick))
            self._ticks.note(actor, due, Fate.FAILED, reason=str(error), until=due)
            return False
        log.info("tick skipped" if sent is None else f"tick sent {fate}", job_id=tick_id(actor, tick))
        return sent is not None


def plan(cron: Cron, due: list[datetime], now: float) -> list[tuple[datetime, Fate, str]]:
    """What is to become of ticks that nobody has dealt with: for each its fate, and why it is missed.

    Args:
        cron: Their schedule.
        due: The ticks, oldest first.
        now: Seconds since the epoch.
    """
    late = [tick for tick in due if now - tick.timestamp() > ON_TIME]
    on_time = [(tick, Fate.ON_TIME, "") for tick in due[len(late) :]]
    oldest = -float("inf") if cron.misfire_age is None else now - cron.misfire_age.total_seconds()
    young = [tick for tick in late if tick.timestamp() >= oldest]
    old = late[: len(late) - len(young)]
    kept = {"skip": 0, "run once": 0 if on_time else 1, "run all": cron.misfire_limit}[cron.misfire]
    why = {
        "skip": "not served in time",
        "run once": "not served in time, a later one stands for it",
        "run all": f"not served in time, and more than misfire_limit={cron.misfire_limit} were missed",
    }[cron.misfire]
    given_up = young[: max(0, len(young) - kept)]
    return [
        *((tick, Fate.MISSED, f"not served within misfire_age={cron.misfire_age}") for tick in old),
        *((tick, Fate.MISSED, why) for tick in given_up),
        *((tick, Fate.CAUGHT_UP, "") for tick in young[len(given_up) :]),
        *on_time,
    ]


def _date(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


def run_scheduler(broker: Broker, stop: threading.Event) -> None:
    """Serve the broker's schedules until the event is set: what `callboard dev` runs beside its workers."""
    Scheduler(broker).run(stop)
