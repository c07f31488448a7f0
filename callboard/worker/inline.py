"""A worker in the caller's own thread, which runs a job when it is told to. For tests.

It claims, reads and runs as the real one does: strictly, between the hooks of the whole stack, through the
same `Worker._process`. What a test wants to know of a run, and the deaths that it wants the worker to die,
come from a middleware of its own. That one is the innermost: the first to see how a run ended.

No thread runs, so the hooks of a worker's life (boot, shutdown) don't either, and time limits aren't enforced.
An async actor runs on an event loop thread, as it does in a real worker; the first one starts it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dramatiq import Middleware
from dramatiq.asyncio import get_event_loop_thread, set_event_loop_thread

from callboard import envelope, queues
from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, Die, Drop, Finish, GiveBack, HookFailed, Later, Merge
from callboard.brokers.driver import Delivery, Intake, Outgoing
from callboard.brokers.stub import StubDriver, StubIntake
from callboard.context import enter_run
from callboard.errors import Unreadable
from callboard.states import State
from callboard.store.base import Change
from callboard.store.control import ControlWatch
from callboard.store.recorder import Recorder
from callboard.worker.crash import Crash, CrashPoint
from callboard.worker.event_loop import JobLoopThread
from callboard.worker.worker import Worker

_ALL = 1_000_000


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of a job, or what came of it instead.

    Attributes:
        job_id: The job.
        actor: Its actor's name.
        attempt: The number of the run, from 1.
        outcome: What became of the job: a `State`, or 'crashed', 'quarantined', or 'lost' where the claim was
            gone before the start.
        reason: Why, in a few words.
        result: What the actor returned.
        error: What it raised, or what a hook that failed raised.
    """

    job_id: str
    actor: str
    attempt: int
    outcome: str
    reason: str = ""
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message in the driver that nobody has claimed. `due` is None when it can be claimed now."""

    queue: str
    job_id: str
    body: bytes
    headers: bytes
    due: float | None


class InlineDriver(StubDriver):
    """The stub driver, which also says what waits, and through which a dead worker sends nothing."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        # A moment that was rounded to microseconds counts as reached.
        super().__init__(clock=lambda: clock() + 1e-6)
        self.worker: InlineWorker | None = None
        self.last_put: Outgoing | None = None

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        if self.worker is not None:
            self.worker.check_alive()
        super().put(messages, deadline=deadline)

    def _put(self, messages: Sequence[Outgoing]) -> None:
        super()._put(messages)
        self.last_put = messages[-1] if messages else None

    def waiting(self, names: Sequence[str]) -> list[Waiting]:
        """What waits in these queues: first what can be claimed now, as it would be, then the rest by time."""
        with self.changed:
            self._promote()
            found = [self._queue(name) for name in names]
            ready = [stored for queue in found for stored in queue.ready]
            delayed = [stored for queue in found for stored in queue.delayed]
            ready.sort(key=lambda stored: (queues.priority_of(stored.queue), stored.serial))
            delayed.sort(key=lambda stored: (stored.due or 0.0, stored.serial))
        return [Waiting(s.queue, s.job_id, s.body, s.headers, None) for s in ready] + [
            Waiting(s.queue, s.job_id, s.body, s.headers, s.due) for s in delayed
        ]


class PromptRecorder(Recorder):
    """Writes each change as it comes, so that a test finds it at once."""

    def record(self, change: Change) -> None:
        self._store.write([change])

    def record_lazily(self, make: Callable[[], Change | None]) -> None:
        if (change := make()) is not None:
            self.record(change)


class PromptControl(ControlWatch):
    """Looks whenever it is asked, and has no thread."""

    @property
    def paused(self) -> frozenset[str]:
        self.refresh()
        return super().paused

    @property
    def cancelled(self) -> Mapping[str, float]:
        self.refresh()
        return super().cancelled

    def start(self) -> None:
        self.refresh()


class InlineWorker:
    """Runs what waits, one message a call.

    Args:
        broker: Whose jobs. Its driver is replaced already.
        driver: That driver.

    Attributes:
        crash: Where it is to die next, if anywhere.
        running: What it runs now.
    """

    def __init__(self, broker: Broker, driver: InlineDriver) -> None:
        self.crash: CrashPoint | None = None
        self.running: ClaimedMessage | None = None
        self._dead = False
        self._broker = broker
        self._driver = driver
        self._worker = Worker(broker, (), threads=1)
        self._witness = _Witness(self)
        self._intake: Intake | None = None
        self._intake_queues: list[str] = []
        self._outer_loop = get_event_loop_thread()
        self._loop = _EventLoop()
        broker.add_middleware(self._witness)
        driver.worker = self
        if self._outer_loop is None:
            set_event_loop_thread(self._loop)  # type: ignore[arg-type]  # it behaves as one

    def close(self) -> None:
        """Let go of claims, and of the event loop."""
        self._driver.worker = None
        if self._intake is not None:
            self._intake.close()
        set_event_loop_thread(self._outer_loop)
        self._loop.stop()

    def run_next(self, job_id: str | None = None) -> JobRun | None:
        """Run what is next to be run, or one job. None if nothing can be run now."""
        intake = self._open_intake()
        delivery = _next(intake) if job_id is None else _pick(intake, job_id)
        return self._run(delivery, intake) if delivery is not None else None

    def _open_intake(self) -> Intake:
        names = sorted(self._broker.queues)
        if self._intake is None or names != self._intake_queues:
            if self._intake is not None:
                self._intake.close()
            self._intake = self._broker.open_intake(names, budget=_ALL)
            self._intake_queues = names
        elif self._broker.control is not None:
            self._intake.pause(self._broker.control.paused)
        return self._intake

    def _run(self, delivery: Delivery, intake: Intake) -> JobRun:
        if self._broker.middleware[-1] is not self._witness:  # a test has added one since
            self._broker.middleware.remove(self._witness)
            self._broker.add_middleware(self._witness)
        self._witness.forget()
        message: ClaimedMessage | None = None
        try:
            message = self._broker.receive(delivery, intake)
            if message is None:
                return self._not_run(delivery)
            self.running = message
            self.reach("before_start")
            self._worker._process(message)
        except Crash:
            assert isinstance(intake, StubIntake)
            intake.crash()
            self._intake = None
            self._dead = False  # the next one lives
            enter_run(None)
            self._broker.running.pop(threading.get_ident(), None)
            return self._killed(message, delivery)
        finally:
            self.running = None
        return self._witness.tell(message)

    def _killed(self, message: ClaimedMessage | None, delivery: Delivery) -> JobRun:
        if message is None:
            return _unknown(delivery)
        witness = self._witness
        return _told(message, "crashed", "the worker was killed", witness.result, witness.error)

    def _not_run(self, delivery: Delivery) -> JobRun:
        """What `receive` kept from running: parked, dead of that, sent to wait, or quarantined."""
        if self._witness.settled is not None:
            return self._witness.tell(self._witness.settled)
        put = self._driver.last_put
        if put is not None and put.queue == queues.QUARANTINE:
            return _unknown(delivery, "quarantined", envelope.decode_headers(put.headers).reason)
        return _unknown(delivery, State.SCHEDULED, "its eta")

    # -- dying -------------------------------------------------------------------------------------------

    def reach(self, point: str) -> None:
        """A point in a run, at which the worker may have to die."""
        if self.crash is not None and self.crash.point == point:
            self.strike()

    def strike(self) -> None:
        """The point at which the worker may have to die is here."""
        if self.crash is not None and self.running is not None:
            self._dead = self.crash.passed_by(self.running.message_id, self.running.actor_name) or self._dead
            self.check_alive()

    def check_alive(self) -> None:
        """Stop whoever goes on although the worker is dead: a `finally` block, or an `except` for everything.

        Raises:
            Crash: Again.
        """
        if self._dead:
            raise Crash


class _Witness(Middleware):
    """Sees how runs end, before any other middleware does."""

    def __init__(self, worker: InlineWorker) -> None:
        self._worker = worker
        self.forget()

    def forget(self) -> None:
        """A new run begins."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.settled: ClaimedMessage | None = None

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._worker.check_alive()
        self.result, self.error = result, exception
        self._worker.reach("after_run")

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._worker.reach("after_send")

    def before_ack(self, broker: Any, message: Any) -> None:
        self._worker.check_alive()
        if isinstance(message.disposition, HookFailed):
            self.error = message.disposition.error
        self._worker.reach("before_ack")

    before_nack = before_ack

    def after_ack(self, broker: Any, message: Any) -> None:
        self.settled = message

    after_nack = after_ack

    def tell(self, message: ClaimedMessage) -> JobRun:
        """The run of a message that is settled."""
        outcome, reason = _fate(message)
        return _told(message, outcome, reason, self.result, self.error)


class _EventLoop:
    """The event loop thread, which starts when a job needs it."""

    def __init__(self) -> None:
        self._thread: JobLoopThread | None = None

    def __getattr__(self, name: str) -> Any:
        if self._thread is None:
            self._thread = JobLoopThread(logging.getLogger(__name__))
            self._thread.start(timeout=30.0)
        return getattr(self._thread, name)

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


def _next(intake: Intake) -> Delivery | None:
    return next(iter(intake.fetch(1, 0)), None)


def _pick(intake: Intake, job_id: str) -> Delivery | None:
    """Claim one job. All are claimed, and the others given back: they keep their places."""
    claimed = intake.fetch(_ALL, 0)
    picked = next((delivery for delivery in claimed if _unknown(delivery).job_id == job_id), None)
    intake.give_back(delivery for delivery in claimed if delivery is not picked)
    return picked


def _fate(message: ClaimedMessage) -> tuple[str, str]:
    disposition = message.disposition
    if isinstance(disposition, Finish | Later):
        return disposition.state, disposition.reason
    if isinstance(disposition, Die):
        return State.DEAD, disposition.reason
    if isinstance(disposition, GiveBack):
        return State.QUEUED, "interrupted, the attempt doesn't count"
    if isinstance(disposition, Merge):
        return "merged", "a copy of a message whose job has gone further"
    assert isinstance(disposition, Drop), disposition
    return "lost", "its claim was gone"


def _told(
    message: ClaimedMessage,
    outcome: str,
    reason: str,
    result: Any = None,
    error: BaseException | None = None,
) -> JobRun:
    return JobRun(message.message_id, message.actor_name, message.attempt, outcome, reason, result, error)


def _unknown(delivery: Delivery, outcome: str = "crashed", reason: str = "") -> JobRun:
    """What a message that wasn't received says of itself."""
    try:
        message = envelope.decode(delivery.body, max_bytes=len(delivery.body))
    except Unreadable:
        return JobRun("", "", 1, outcome, reason)
    return JobRun(message.message_id, message.actor_name, 1, outcome, reason)
