"""A pytest plugin for people who write actors: the fixture `jobs`.

    def test_the_invoice_is_mailed(jobs, outbox):
        send_invoice.send(invoice_id=42, to="ada@example.org")
        jobs.drain()
        assert [mail.to for mail in outbox] == ["ada@example.org"]

The life of a test: the fixture lends the application's broker queues in memory, a store in memory and a clock
that stands, and takes them back afterwards. A send goes its whole way, into bytes. Then nothing happens until
the test asks for it: `drain` claims, reads and runs what waits, in the test's own thread, between the hooks
of the application's whole middleware, and moves the clock to where the next job is due.

pytest loads this module in every environment that has Callboard, so it imports next to nothing at the top.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

import pytest

from callboard.errors import CallboardError, JobNotFound

if TYPE_CHECKING:
    from types import TracebackType

    from dramatiq import Actor, Message
    from pydantic import BaseModel

    from callboard.actor import ModelActor, ModelSending
    from callboard.brokers.base import Broker
    from callboard.dead_letter import DeadLetter
    from callboard.states import State
    from callboard.store.base import Record
    from callboard.worker.crash import CrashPoint, Point
    from callboard.worker.inline import InlineDriver, InlineWorker, JobRun, Waiting

P = ParamSpec("P")
Q = ParamSpec("Q")
M = TypeVar("M", bound="BaseModel")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

__all__ = ["Clock", "Drained", "JobDied", "Jobs", "NeverCrashed", "NeverDrained", "WaitingJob", "jobs_of"]


class JobDied(CallboardError, AssertionError):
    """A job died of no exception of its own; the message says which one and why."""


class NeverDrained(CallboardError, AssertionError):
    """Jobs still waited after `max_jobs` runs; the message says which ran last."""


class NeverCrashed(CallboardError, AssertionError):
    """No job came to the point at which the worker was to be killed."""


class Clock:
    """A clock that stands until it is moved. Queues, retries, deadlines, keys and records go by it.

    It begins at the next whole second of real time.
    """

    def __init__(self) -> None:
        self._seconds = float(math.ceil(time.time()))

    def __call__(self) -> float:
        return self._seconds

    def __repr__(self) -> str:
        return f"<Clock {self.now.isoformat()}>"

    @property
    def now(self) -> datetime:
        """The moment at which it stands, in UTC."""
        return datetime.fromtimestamp(self._seconds, UTC)

    def advance(self, by: timedelta) -> None:
        """Move it on.

        Raises:
            ValueError: If that were backwards.
        """
        if by < timedelta(0):
            raise ValueError(f"time can't go back by {-by}")
        self._seconds += by.total_seconds()

    def advance_to(self, moment: datetime) -> None:
        """Move it on to a moment, which is aware.

        Raises:
            ValueError: If that were backwards.
        """
        self.advance(moment - self.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A job that waits in a queue.

    Attributes:
        id: Its id.
        actor: Its actor's name.
        kwargs: Its arguments, as JSON has them.
        args: Those without a name; only jobs of stock Dramatiq actors have any.
        queue: The queue it waits in.
        priority: Of that queue.
        due: When it may start; None if it may start now.
        tags: Its tags.
        attempt: The number of its next run, from 1.
        state: `queued`, `scheduled`, `retrying`, `snoozed` or `parked`.
        reason: Why it waits, in a few words.
        payload: Its arguments as the actor gets them: an instance of its model, or a dict of Python values;
            None if they don't fit.
    """

    id: str
    actor: str
    kwargs: dict[str, Any]
    args: tuple[Any, ...] = ()
    queue: str
    priority: int
    due: datetime | None
    tags: tuple[str, ...]
    attempt: int
    state: State
    reason: str
    payload: Any = field(compare=False)

    def __repr__(self) -> str:
        arguments = [repr(arg) for arg in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        notes = [
            f"in {self.queue}",
            *([f"{self.state} until {self.due.isoformat()}"] if self.due else []),
            *([f"attempt {self.attempt}"] if self.attempt > 1 else []),
            *([f"tags {', '.join(self.tags)}"] if self.tags else []),
        ]
        return f"<{self.actor}({', '.join(arguments)}) {', '.join(notes)}, id {self.id}>"


@dataclass(slots=True)
class Drained:
    """What `Jobs.drain` did: every run in its order, and how many ended in which way."""

    runs: list[JobRun] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = Counter(run.outcome for run in self.runs)
        return f"<Drained {', '.join(f'{outcome}: {n}' for outcome, n in counts.items()) or 'nothing'}>"

    def count(self, outcome: str) -> int:
        """How many runs ended with an outcome: a `State`, 'crashed', 'quarantined' or 'lost'."""
        return sum(run.outcome == outcome for run in self.runs)

    @property
    def succeeded(self) -> int:
        """Jobs that succeeded."""
        return self.count("succeeded")

    @property
    def retried(self) -> int:
        """Runs that failed and were, or will be, tried again."""
        return self.count("retrying")

    @property
    def snoozed(self) -> int:
        """Runs that asked to come back later."""
        return self.count("snoozed")

    @property
    def dead(self) -> int:
        """Jobs that became dead letters."""
        return self.count("dead")

    @property
    def cancelled(self) -> int:
        """Jobs that were cancelled."""
        return self.count("cancelled")

    @property
    def expired(self) -> int:
        """Jobs that weren't started in time."""
        return self.count("expired")

    @property
    def crashed(self) -> int:
        """Runs in which the worker was killed: one at most."""
        return self.count("crashed")


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
        return [self._waiting_job(found) for found in self._driver.waiting(sorted(self.broker.queues))]

    def waiting_for(self, actor: Actor[Any, Any] | str) -> list[WaitingJob]:
        """The jobs of one actor that wait.

        Raises:
            UnknownActor: If a name is given that no actor has.
        """
        name = self.broker.find_actor(actor).actor_name if isinstance(actor, str) else actor.actor_name
        return [job for job in self.waiting if job.actor == name]

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters, oldest first."""
        from callboard import dead_letter, queues

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
        job_id = job if isinstance(job, str) else job.message_id
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
            _check(run, fail=fail)
            if len(report.runs) > max_jobs:
                raise NeverDrained(_endless(report, max_jobs))
        if until is not None:
            self.clock._seconds = max(end, self.clock())
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
        with self._crashing("before_ack", job_id=job_id):
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
        name = self.broker.find_actor(actor).actor_name if isinstance(actor, str) else None
        name = actor.actor_name if actor is not None and not isinstance(actor, str) else name
        if isinstance(point, str):
            if after:
                raise ValueError("after= is for functions; a named point says itself where it lies")
            with self._crashing(point, nth=nth, actor_name=name) as crash:
                yield crash
            what = f"the point {point!r}"
        else:
            from callboard.worker.crash import around_calls

            strike, nothing = self._worker.strike, _nothing
            before_call, after_call = (nothing, strike) if after else (strike, nothing)
            with (
                around_calls(point, before=before_call, after=after_call),
                self._crashing(None, nth=nth, actor_name=name) as crash,
            ):
                yield crash
            what = f"{'the end of ' if after else ''}a call of {getattr(point, '__qualname__', point)}"
        if not crash.struck:
            passed = f"it was passed {crash.passed} times, not {nth}" if crash.passed else "none was passed"
            raise NeverCrashed(f"the worker was to be killed at {what}, and no run came to it: {passed}")

    def cancel(self, job: Message[Any] | str) -> None:
        """Cancel a job: it never starts, or sees `current_job().cancelled()`."""
        assert self.broker.store is not None, "cancelling needs a store, and this broker has none"
        self.broker.store.cancel(job if isinstance(job, str) else job.message_id, at=self.clock())

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

    def _waiting_job(self, found: Waiting) -> WaitingJob:
        from callboard import envelope, queues
        from callboard.errors import Unreadable
        from callboard.states import State

        try:
            message: Any = envelope.decode(found.body, max_bytes=len(found.body))
            headers = envelope.decode_headers(found.headers)
            tags = tuple(envelope.extras_of(message.options).tags)
        except Unreadable:  # it will go to quarantine
            message, headers, tags = None, envelope.Headers(), ()
        return WaitingJob(
            id=message.message_id if message else found.job_id,
            actor=message.actor_name if message else "unreadable",
            kwargs=message.kwargs if message else {},
            args=message.args if message else (),
            queue=found.queue,
            priority=queues.priority_of(found.queue),
            due=None if found.due is None else datetime.fromtimestamp(found.due, UTC),
            tags=tags,
            attempt=headers.attempt + 1,
            state=State(headers.state or State.QUEUED) if found.due is not None else State.QUEUED,
            reason=headers.reason,
            payload=self._payload(message) if message else None,
        )

    def _payload(self, message: Message[Any]) -> Any:
        from callboard.actor import JobActor
        from callboard.payload import PayloadMismatch

        actor = self.broker.actors.get(message.actor_name)
        if isinstance(actor, JobActor):
            try:
                return actor.payload.check(actor.payload.bind(message.args, message.kwargs))
            except PayloadMismatch:  # the run will say so
                return None
        return message.kwargs

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
        self.clock._seconds = due
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
        if run.error is not None:
            raise _own_error(run, run.error)
        if run.outcome not in ("succeeded", "crashed"):
            raise JobDied(f"job {job_id} of '{run.actor}' was to succeed, and is {run.outcome}: {run.reason}")
        return run

    @contextmanager
    def _crashing(
        self,
        point: Point | None,
        *,
        nth: int = 1,
        actor_name: str | None = None,
        job_id: str | None = None,
    ) -> Iterator[CrashPoint]:
        from callboard.worker.crash import CrashPoint

        if self._worker.crash is not None:
            raise ValueError("the worker is to be killed at another point already; it dies once")
        self._worker.crash = crash = CrashPoint(point, nth=nth, actor_name=actor_name, job_id=job_id)
        try:
            yield crash
        finally:
            self._worker.crash = None


def _nothing() -> None: ...


def _endless(report: Drained, max_jobs: int) -> str:
    last = Counter(run.actor for run in report.runs[-100:])
    culprits = ", ".join(f"{n} of '{name}'" for name, n in last.most_common(3))
    return (
        f"there was still something to run after {max_jobs} runs ({report!r}), and the last were {culprits}. "
        "Does a job send itself again, or snooze for ever? Then let less time pass with until=; "
        "if all is well, pass a higher max_jobs="
    )


def _check(run: JobRun, *, fail: bool) -> None:
    """Let a run fail the test, if it has to."""
    __tracebackhide__ = True
    from dramatiq.middleware import Interrupt

    error = run.error
    if error is not None and not isinstance(error, Exception | Interrupt):
        raise _own_error(run, error)  # Ctrl-C, or pytest.fail() in a fake
    if not fail or run.outcome not in ("dead", "quarantined"):
        return
    if error is not None:
        raise _own_error(run, error)
    who = f"job {run.job_id} of '{run.actor}'" if run.job_id else "a message"
    hint = "; import the module that declares it" if "no worker here knows" in run.reason else ""
    raise JobDied(f"{who} is {run.outcome}: {run.reason}{hint}")


def _own_error(run: JobRun, error: BaseException) -> BaseException:
    """A job's exception, with the traceback of the job's own frames."""
    note = f"raised by '{run.actor}', attempt {run.attempt} of job {run.job_id}: {run.outcome}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error.with_traceback(_own_frames(error.__traceback__))


def _own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that lead from the worker to the job."""
    machinery = ("callboard", "dramatiq", "asyncio", "concurrent", "threading")
    found = traceback
    while found is not None:
        if found.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in machinery:
            return found
        found = found.tb_next
    return traceback


@contextmanager
def jobs_of(broker: Broker) -> Iterator[Jobs]:
    """Lend a broker what tests need, and take it back. The fixture `jobs` is this, for the application's broker."""
    from callboard.store.sqlite import SQLiteStore
    from callboard.worker.inline import InlineDriver, InlineWorker, PromptControl, PromptRecorder

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


# -- pytest ----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("callboard_broker", "The module that has the application's `broker`.", default="broker")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Make the application importable from the folder that has its broker, as it is for its commands."""
    name = early_config.getini("callboard_broker").partition(".")[0]
    for folder in (early_config.rootpath, early_config.invocation_params.dir):
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return


@pytest.fixture(scope="session")
def callboard_broker(pytestconfig: pytest.Config) -> Broker:
    """The application's broker: `broker` of the module that the ini option `callboard_broker` names, which is
    `broker` by default. Override this fixture where it comes from elsewhere."""
    from callboard.brokers.base import Broker

    name = pytestconfig.getini("callboard_broker")
    broker = getattr(importlib.import_module(name), "broker", None)
    if not isinstance(broker, Broker):
        raise pytest.UsageError(
            f"the module '{name}' has no `broker` of Callboard; the ini option callboard_broker names one that has"
        )
    return broker


@pytest.fixture
def jobs(callboard_broker: Broker) -> Iterator[Jobs]:
    """The application's jobs, in memory, on a clock that stands: see `callboard.testing.Jobs`."""
    with jobs_of(callboard_broker) as jobs:
        yield jobs
