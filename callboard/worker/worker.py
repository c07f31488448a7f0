"""The worker: one thread that claims, several that run.

The life of a worker: `start` opens an intake and starts the threads. The claiming thread keeps about
50 ms of work waiting, measured by how long jobs take, so that a worker of long jobs hoards none; what waits
longer than planned goes back to the broker, where a free worker finds it. How it stops is told in
`callboard.worker.shutdown`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dramatiq.middleware import SkipMessage

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, Drop, HookFailed
from callboard.brokers.driver import Delivery
from callboard.context import LeaseLost, enter_run
from callboard.loggers import get_logger
from callboard.store.base import Control
from callboard.store.control import ControlWatch
from callboard.worker.cut_runs import CutRunMemory
from callboard.worker.leases import Fence
from callboard.worker.pace import Pace, budget
from callboard.worker.pulse import Pulse
from callboard.worker.redeliveries import Redeliveries
from callboard.worker.shutdown import Shutdown
from callboard.worker.slots import Slots
from callboard.worker.solitude import Solitude
from callboard.worker.work_queue import WorkQueue

log = get_logger(__name__)

_FETCH_TIMEOUT = 1.0
_BATCH_MOST = 128
#: What has waited in here for so many seconds, although it should have started within 0.05, goes back.
_STALE = 0.25
_NAPS = 0.001, 0.1
#: Seconds between two looks for runs that have lost their leases.
_LOOK_FOR_LOST = 0.5


class Worker:
    """Runs the jobs of some queues, in this process.

    Args:
        broker: Where they come from.
        queue_names: The queues.
        threads: How many jobs run at once.
        slots: Where to tell the supervisor what runs.
        pulse: Where to tell it that messages are claimed.
        deaths: Where it notes the runs of processes that died.
        lease_owner: Who holds the leases of what runs, if a process beside this one does so.

    Attributes:
        broker: As given.
        threads: As given.
        queue_names: As given.
    """

    def __init__(
        self,
        broker: Broker,
        queue_names: Sequence[str],
        *,
        threads: int = 8,
        slots: Slots | None = None,
        pulse: Pulse | None = None,
        deaths: CutRunMemory | None = None,
        lease_owner: str | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"a worker needs at least one thread, not {threads}")
        self.broker = broker
        self.queue_names = tuple(queue_names)
        self.threads = threads
        self._slots = slots
        self._pulse = pulse
        self._pace = Pace(threads)
        self._running: dict[int, tuple[ClaimedMessage, float]] = {}  # thread -> what it runs, since when
        self._stopping = threading.Event()
        self._shutdown: Shutdown | None = None
        self._has_room = threading.Event()
        self._napping = False
        self._work = WorkQueue(on_idle=self._end_nap)
        self._fence = (
            Fence(broker, slots, lease_owner) if slots is not None and lease_owner is not None else None
        )
        self._next_look = 0.0
        self._redeliveries = Redeliveries(broker, self._is_running, deaths=deaths, lease_owner=lease_owner)
        self._solitude = Solitude(broker, self._work, threads)
        self._claimer = threading.Thread(target=self._claim, name="callboard-claimer", daemon=True)
        self._runners = [
            threading.Thread(target=self._run, args=(n,), name=f"callboard-runner-{n}", daemon=True)
            for n in range(threads)
        ]

    @property
    def claimed(self) -> int:
        """How many jobs it holds and hasn't started."""
        return len(self._work) + len(self._redeliveries) + len(self._solitude)

    @property
    def running(self) -> list[ClaimedMessage]:
        """What runs now."""
        return [message for message, _ in list(self._running.values())]

    def start(self) -> None:
        """Start claiming and running."""
        self.broker.emit_before("worker_boot", self)
        self._intake = self.broker.open_intake(
            self.queue_names, budget=budget(self.threads, len(self.queue_names))
        )
        if (control := self.broker.control) is not None:
            control.on_change = self._control_changed
            self._control_changed(control)
        for thread in self._runners:
            thread.start()
        self._claimer.start()
        self.broker.emit_after("worker_boot", self)

    def stop(self, *, grace: float = 30.0) -> bool:
        """Stop: see `callboard.worker.shutdown`. A second call changes nothing.

        Args:
            grace: Seconds that running jobs have to finish.

        Returns:
            Whether every job that ran has finished, or was given back. If not, a job can't be reached, and
            only the end of the process ends it; its claim ends with it.
        """
        if self._shutdown is not None:
            return not any(thread.is_alive() for thread in self._runners)
        self._shutdown = Shutdown(
            self.broker, self, self._intake, self._work, self._claimer, self._runners, grace=grace
        )
        self._stopping.set()
        if self.broker.control is not None:
            self.broker.control.on_change = None
        self._end_nap()
        return self._shutdown.run()

    def hurry(self) -> None:
        """End the grace of a `stop` that is under way in another thread."""
        if self._shutdown is not None:
            self._shutdown.hurry()

    def _control_changed(self, control: Control | ControlWatch) -> None:
        if not self._stopping.is_set():
            self._intake.pause(control.paused)

    # -- claiming ----------------------------------------------------------------------------------------

    def _claim(self) -> None:
        while not self._stopping.is_set():
            try:
                self._has_room.clear()
                self._napping = True
                room, patience = self._room()
                if self._fence is not None:
                    self._interrupt_lost_runs()
                if self._redeliveries:
                    room -= self._start_redelivered(0 if self._solitude else room)
                    patience = min(patience, self._redeliveries.patience())
                if self._solitude:
                    room, patience = 0, self._run_alone()
                if room > 0:
                    self._napping = False
                    fetched = self._intake.fetch(room, patience)
                    self._hand_over(fetched)
                else:
                    fetched = []
                    self._has_room.wait(patience)
                if self._pulse is not None:
                    # What claims nothing since something runs alone hasn't stalled.
                    self._pulse.turned(len(fetched) or bool(self._solitude))
            except Exception:
                log.exception("claiming failed, it goes on in a second")
                self._stopping.wait(1.0)
        self._give_back([message.delivery for message in self._redeliveries.close()])
        self.give_back([*self._solitude.close(), *self._work.close()])

    def _end_nap(self) -> None:
        if self._napping:
            self._has_room.set()

    def _room(self) -> tuple[int, float]:
        """How many messages to claim, and for how long to wait: for the first of them, or for room.

        A thread that has nothing to do ends the wait for room. Otherwise it is time that does: to be woken
        for every job that ends would cost more than the job.
        """
        pace, waiting, now = self._pace, len(self._work), time.perf_counter()
        running_for = [now - since for _, since in list(self._running.values())]
        expected = pace.expect(running_for)
        ahead = pace.ahead(expected)
        room = self.threads - len(running_for) + ahead - waiting
        batch = max(1, min(ahead // 2, _BATCH_MOST))  # of many short jobs: not one by one, as each is done
        if room >= batch:
            return room, _STALE if waiting else _FETCH_TIMEOUT
        if waiting > ahead and len(running_for) >= self.threads and self._work.longest_wait() > _STALE:
            pace.mean = expected
            self.give_back(self._work.give_up(waiting - ahead))
        if not waiting and not ahead:
            return 0, _FETCH_TIMEOUT
        soon = (batch - room) * (expected or 0.0) / self.threads
        return 0, min(max(soon, _NAPS[0]), _NAPS[1])

    def _hand_over(self, fetched: list[Delivery]) -> None:
        for number, delivery in enumerate(fetched):
            if self._stopping.is_set():
                self._give_back(fetched[number:])
                break
            try:
                message = self.broker.receive(delivery, self._intake)
            except Exception:
                log.exception(
                    "a message can't be received, it stays claimed until this worker ends",
                    queue=delivery.queue,
                )
                continue
            if message is None:
                continue
            if (delivery.redelivered or delivery.headers) and self._redeliveries.concerns(message):
                self._redeliveries.hold(message)
            else:
                self._work.put(message)
        if self._stopping.is_set():  # which may have emptied the queue before the last of these came
            self.give_back(self._work.close())

    def _start_redelivered(self, room: int) -> int:
        """Start jobs that were delivered before, and may start by now; returns how many."""
        taken = self._redeliveries.take(room)
        for message in taken:
            self._work.put(message)
        for message, cut_at in self._redeliveries.take_suspects():
            self._solitude.add(message, cut_at)
        self._give_back([message.delivery for message in self._redeliveries.surplus()])
        return len(taken)

    def _interrupt_lost_runs(self) -> None:
        """Interrupt what runs here and is another worker's by now."""
        if self._slots is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_FOR_LOST
        for number in self._slots.threads_that_lost():
            message, _ = self._running.get(self._runners[number].ident or 0, (None, 0.0))
            if message is not None and message.run is not None:
                message.run.interrupt(LeaseLost)

    def _run_alone(self) -> float:
        """See to what has to run alone; returns seconds until the next look."""
        patience, unstarted = self._solitude.turn()
        self.give_back(unstarted)
        return patience

    def _is_running(self, job_id: str) -> bool:
        """Whether a job runs in this process or, where that can be told, another one of this worker."""
        if self._slots is not None and self._slots.is_running(job_id):
            return True
        return any(message.message_id == job_id for message in self.running)

    def give_back(self, messages: Sequence[ClaimedMessage]) -> None:
        """Give back what was to start, and hasn't. For the claiming thread, and for whoever stops the worker."""
        self._give_back([message.delivery for message in messages])
        self._redeliveries.free_leases(messages)

    def _give_back(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            self._intake.give_back(deliveries)
            log.info("gave back jobs that weren't started", count=len(deliveries))

    # -- running -----------------------------------------------------------------------------------------

    def _run(self, number: int) -> None:
        """A thread's life. Nothing that a job or a hook raises ends it."""
        thread, work, running, slots, pace = (
            threading.get_ident(),
            self._work,
            self._running,
            self._slots,
            self._pace,
        )
        is_ours = partial(self._is_ours, thread, number) if self._fence is not None else None
        self._tell(self.broker.emit_after, "worker_thread_boot")
        message: ClaimedMessage | None
        while (message := work.get()) is not None:
            started = time.perf_counter()
            running[thread] = message, started
            if slots is not None:
                slots.start(number, message.message_id)
            try:
                self._process(message, is_ours)
            except BaseException as error:  # noqa: BLE001  a hook may raise SystemExit, too
                self._contain(message, error)
            finally:
                running.pop(thread, None)
                if slots is not None:
                    slots.end(number)
                pace.note(time.perf_counter() - started)
                message = None  # an idle thread keeps no payload alive
        self._tell(self.broker.emit_before, "worker_thread_shutdown")

    def _tell(self, emit: Callable[..., None], signal: str) -> None:
        try:
            emit(signal, threading.current_thread())
        except BaseException:
            log.exception("a hook failed", signal=signal)

    def _process(self, message: ClaimedMessage, is_ours: Callable[..., bool] | None = None) -> None:
        """Run one message between its hooks, and settle it. The steps and signals are Dramatiq's."""
        broker = self.broker
        try:
            broker.before_run(message)
        except SkipMessage as skip:
            if message.failed:
                message.stuff_exception(skip)
            broker.after_skip(message)
        else:
            result: Any = None
            error: BaseException | None = None
            if is_ours is not None and message.run is not None:
                message.run.still_ours = is_ours
            try:
                if not message.failed:
                    result = broker.actors[message.actor_name].fn(*message.args, **message.kwargs)
            except BaseException as raised:  # noqa: BLE001  whatever a job raises is its own failure
                error = raised
            if is_ours is not None and (isinstance(error, LeaseLost) or not is_ours(at_its_end=True)):
                result, error = None, error or LeaseLost("its job is another worker's by now")
                message.disposition = Drop()
            if error is not None:
                message.stuff_exception(error)
            broker.after_run(message, result, error)
        broker.finish(message)
        message.clear_exception()  # it refers to the frames of the run

    def _is_ours(self, thread: int, number: int, *, ask: bool = True, at_its_end: bool = False) -> bool:
        """Whether what a thread runs may still tell what it came to."""
        assert self._fence is not None
        message = self._running[thread][0]
        if at_its_end:
            return self._fence.holds_at_its_end(message, number)
        return self._fence.holds(message, number, ask=ask)

    def _contain(self, message: ClaimedMessage, error: BaseException) -> None:
        """Something around the run failed that never should. The job comes again, if that can be had."""
        log.error("a run's surroundings failed", job_id=message.message_id, exc_info=error)
        self.broker.running.pop(threading.get_ident(), None)
        enter_run(None)
        try:
            if not message.settled:
                message.disposition = HookFailed("worker", error)
                self.broker.settle(message)
        except BaseException:
            log.exception(
                "settling failed, the job stays claimed until this worker ends", job_id=message.message_id
            )
