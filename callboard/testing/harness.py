"""The jobs of a test: looked at, drained, run twice, cancelled, and their worker killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from dramatiq import Actor, Message
from pydantic import BaseModel

from callboard import dead_letter, queues
from callboard.actor import ModelActor, ModelSending
from callboard.brokers.base import Broker
from callboard.dead_letter import DeadLetter
from callboard.errors import JobNotFound
from callboard.states import State
from callboard.store.base import Record
from callboard.store.sqlite import SQLiteStore
from callboard.testing import crashes
from callboard.testing.clock import Clock
from callboard.testing.drained import Drained
from callboard.testing.failures import JobDied, check, check_success, endless
from callboard.testing.waiting import WaitingJob, waiting_job
from callboard.worker.crash import CrashPoint, Point
from callboard.worker.inline import InlineDriver, InlineWorker, JobRun, PromptControl, PromptRecorder

P = ParamSpec("P")
Q = ParamSpec("Q")
M = TypeVar("M", bound=BaseModel)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Sends(Protocol[P, R_co]):
    """What can send a job: an actor, or an actor with options (`send_invoice.using(...)`)."""

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R_co]: ...


class Jobs:
    """The jobs of a test. Made by the fixture `jobs`, or by `jobs_of`.

    Attributes:
        broker: The application's broker, in its borrowed surroundings.
        clock: The clock that it goes by.
    """

    def __init__(self, broker: Broker, driver: InlineDriver, worker: InlineWorker, clock: Clock) -> None:
        self.broker = broker
        self.clock = clock
        self._driver = driver
        self._worker = worker

    def __repr__(self) -> str:
        return f"<Jobs, {len(self.waiting)} waiting, {len(self.dead)} dead, at {self.clock.now.isoformat()}>"

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[WaitingJob]:
        """The jobs that wait: those that may start now in the order of their priorities, then those that
        are delayed, retrying or snoozed, by when they are due."""
        found = self._driver.waiting(sorted(self.broker.queues))
        return [waiting_job(each, self.broker.actors) for each in found]

    def waiting_for(self, actor: Actor[Any, Any] | str) -> list[WaitingJob]:
        """The jobs of one actor that wait.

        Raises:
            UnknownActor: If a name is given that no actor has.
        """
        name = self._name_of(actor)
        return [job for job in self.waiting if job.actor == name]

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters, oldest first."""
        categories = {queues.category_of(queue) for queue in self.broker.queues}
        letters = [
            dead_letter.decode(found.body)
            for found in self._driver.waiting([queues.dead_queue(category) for category in categories])
        ]
        return sorted(letters, key=lambda letter: letter.died_at)

    def record(self, job: Message[Any] | str) -> Record:
        """What the store knows of a job: its state, attempts, times, progress, events.

        Raises:
            JobNotFound: If there is none.
        """
        job_id = _id_of(job)
        record = self.broker.store.get(job_id) if self.broker.store is not None else None
        if record is None:
            raise JobNotFound(f"no job was sent with the id '{job_id}' in this test")
        return record

    def state(self, job: Message[Any] | str) -> State:
        """The state of a job.

        Raises:
            JobNotFound: If there is none.
        """
        return self.record(job).state

    # -- running -----------------------------------------------------------------------------------------

    def drain(
        self,
        *,
        until: datetime | timedelta | None = None,
        advance: bool = True,
        max_jobs: int = 1000,
        fail: bool = True,
    ) -> Drained:
        """Run what waits, and what that sends in its turn, until nothing waits any more.

        Args:
            until: Let no more time pass than this, or than until this moment; all of it does pass. Without it,
                the clock moves on to whatever is due last.
            advance: Whether the clock moves at all; if not, only what is due now runs.
            max_jobs: So many runs are enough to say that this will never end.
            fail: Whether a job that dies fails the test.

        Raises:
            Exception: The exception of the job that died, as the job raised it. Others may still wait then.
            JobDied: If a job died of no exception, or a message went to quarantine.
            NeverDrained: If jobs still wait after `max_jobs` runs.
        """
        __tracebackhide__ = True
        end = self._end(until, advance)
        report = Drained()
        while True:
            run = self._worker.run_next()
            if run is None:
                if not self._advance_to_next(end):
                    break
                continue
            report.runs.append(run)
            if run.outcome == "crashed":
                return report
            check(run, fail=fail)
            if len(report.runs) > max_jobs:
                raise endless(report, max_jobs)
        if until is not None:
            self.clock.reach(end)
        return report

    @overload
    def run_twice(self, actor: ModelActor[M, Q, R] | ModelSending[M, Q, R], payload: M, /) -> tuple[R, R]: ...
    @overload
    def run_twice(
        self, actor: ModelActor[M, Q, R] | ModelSending[M, Q, R], /, *args: Q.args, **fields: Q.kwargs
    ) -> tuple[R, R]: ...
    @overload
    def run_twice(self, actor: Sends[P, R], /, *args: P.args, **kwargs: P.kwargs) -> tuple[R, R]: ...
    def run_twice(self, actor: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Send a job, and run it twice: as if the worker had been killed after the run, before its ack.

        So the second run has the same id, the same bytes and the same number. Both have to succeed; what they
        sent waits afterwards. A delay is waited for.

        Returns:
            What the actor returned, each time.

        Raises:
            Exception: The exception of a run that failed, as the job raised it.
            JobDied: If a run didn't take place: cancelled, expired, paused, ...
        """
        __tracebackhide__ = True
        job_id = actor.send(*args, **kwargs).message_id
        with crashes.armed(self._worker, "before_ack", job_id=job_id):
            first = self._run_one(job_id)
        second = self._run_one(job_id)
        return first.result, second.result

    @contextmanager
    def crash_at(
        self,
        point: Point | Callable[..., Any],
        *,
        nth: int = 1,
        after: bool = False,
        actor: Actor[Any, Any] | str | None = None,
    ) -> Iterator[CrashPoint]:
        """Kill the worker at a point of a run in this block: its claim comes back, the attempt doesn't count.

        `drain` returns then; the next `drain` runs the job again.

        Args:
            point: `before_start`: claimed, not begun. `after_send`: the run has sent a job. `after_run`: the
                actor has returned or raised, and nobody knows. `before_ack`: all hooks have run, results are
                kept, jobs that follow are sent, and the message isn't acked. Or a function that the job
                calls: the worker dies instead of the call.
            nth: At which time the point is passed.
            after: With a function: die after the call instead of before it.
            actor: Only runs of this actor count.

        Raises:
            NeverCrashed: At the end of the block, if no run came to the point.
            ValueError: If there is no such point, or the function can't be found.
        """
        name = None if actor is None else self._name_of(actor)
        with crashes.at(self._worker, point, nth=nth, after=after, actor_name=name) as crash:
            yield crash

    def cancel(self, job: Message[Any] | str) -> None:
        """Cancel a job: it never starts, or sees `current_job().cancelled()`."""
        assert self.broker.store is not None, "cancelling needs a store, and this broker has none"
        self.broker.store.cancel(_id_of(job), at=self.clock())

    def tick(self, actor: Actor[Any, Any]) -> Message[Any]:
        """Let time pass until the next tick of a periodic actor, and send its job as the scheduler does.

        Raises:
            ValueError: If the actor isn't periodic.
        """
        schedule = actor.options.get("periodic")
        if schedule is None:
            raise ValueError(f"'{actor.actor_name}' has no schedule; declare it with periodic=cron(...)")
        tick = schedule.next_after(self.clock.now)
        self.clock.advance_to(tick)
        return actor.send_with_options(scheduled_at=tick.isoformat())

    # -- within ------------------------------------------------------------------------------------------

    def _end(self, until: datetime | timedelta | None, advance: bool) -> float:
        """The moment that the clock mustn't pass."""
        if not advance:
            if until is not None:
                raise ValueError("give one of until= and advance=False")
            return self.clock()
        if until is None:
            return math.inf
        return until.timestamp() if isinstance(until, datetime) else self.clock() + until.total_seconds()

    def _advance_to_next(self, end: float) -> bool:
        due = self._driver.next_due()
        if due is None or due > end:
            return False
        self.clock.reach(due)
        return True

    def _run_one(self, job_id: str) -> JobRun:
        """Run one job to its success, be it that the worker is killed then."""
        __tracebackhide__ = True
        run = self._worker.run_next(job_id)
        if run is None:
            delayed = [job.due for job in self.waiting if job.id == job_id and job.due is not None]
            if delayed:
                self.clock.advance_to(delayed[0])
                run = self._worker.run_next(job_id)
        if run is None:
            raise JobDied(f"job {job_id} can't be claimed: it isn't queued, or its queue is paused")
        check_success(run)
        return run

    def _name_of(self, actor: Actor[Any, Any] | str) -> str:
        return self.broker.find_actor(actor).actor_name if isinstance(actor, str) else actor.actor_name


def _id_of(job: Message[Any] | str) -> str:
    return job if isinstance(job, str) else job.message_id


@contextmanager
def jobs_of(broker: Broker) -> Iterator[Jobs]:
    """Lend a broker what tests need, and take it back. The fixture `jobs` is this, for the application's broker."""
    clock = Clock()
    driver = InlineDriver(clock=clock)
    store = SQLiteStore(":memory:", clock=clock) if broker.store is not None else None
    with broker.replaced(driver, store=store, clock=clock):
        if store is not None:
            broker.recorder = PromptRecorder(store)
            broker.control = PromptControl(store)
        worker = InlineWorker(broker, driver)
        try:
            yield Jobs(broker, driver, worker, clock)
        finally:
            worker.close()
            driver.close()
            if store is not None:
                store.close()
