"""The worker: one thread that claims, several that run.

The life of a worker: `start` opens an intake and starts the threads. The claiming thread keeps about
50 ms of work waiting, measured by how long jobs take, so that a worker of long jobs hoards none. `stop`
claims nothing more, gives back at once what no thread has started, waits for the running jobs within the
grace, then interrupts them; what was interrupted goes back uncounted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import structlog
from dramatiq.middleware import Shutdown, SkipMessage

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.driver import Delivery
from callboard.worker.work_queue import WorkQueue

log = structlog.get_logger(__name__)

#: How many seconds of work wait in a worker beside what runs, and how many messages at most.
AHEAD_SECONDS = 0.05
AHEAD_MOST = 256
_FETCH_TIMEOUT = 1.0
_INTERRUPT_GRACE = 5.0


class Worker:
    """Runs the jobs of some queues, in this process.

    Args:
        broker: Where they come from.
        queue_names: The queues.
        threads: How many jobs run at once.

    Attributes:
        threads: As given.
        queue_names: As given.
    """

    def __init__(self, broker: Broker, queue_names: Sequence[str], *, threads: int = 8) -> None:
        if threads < 1:
            raise ValueError(f"a worker needs at least one thread, not {threads}")
        self.broker = broker
        self.queue_names = tuple(queue_names)
        self.threads = threads
        self._work = WorkQueue()
        self._running: dict[int, ClaimedMessage] = {}  # thread -> what it runs
        self._mean_seconds = 0.0
        self._stopping = threading.Event()
        self._claimer = threading.Thread(target=self._claim, name="callboard-claimer", daemon=True)
        self._runners = [
            threading.Thread(target=self._run, name=f"callboard-runner-{n}", daemon=True)
            for n in range(threads)
        ]

    @property
    def claimed(self) -> int:
        """How many jobs it holds and hasn't started."""
        return len(self._work)

    @property
    def running(self) -> list[ClaimedMessage]:
        """What runs now."""
        return list(self._running.values())

    def start(self) -> None:
        """Start claiming and running."""
        self.broker.emit_before("worker_boot", self)
        self._intake = self.broker.open_intake(self.queue_names, budget=AHEAD_MOST + self.threads)
        for thread in self._runners:
            thread.start()
        self._claimer.start()
        self.broker.emit_after("worker_boot", self)

    def stop(self, *, grace: float = 30.0) -> bool:
        """Stop: see the module's head.

        Args:
            grace: Seconds that running jobs have to finish.

        Returns:
            Whether every job that ran has finished, or was given back.
        """
        self.broker.emit_before("worker_shutdown", self)
        self._stopping.set()
        self._intake.pause(frozenset(self.queue_names))
        self._intake.wake()
        self._give_back([message.delivery for message in self._work.close()])
        self._claimer.join(timeout=_FETCH_TIMEOUT + _INTERRUPT_GRACE)
        finished = self._wait_for_runners(grace)
        if not finished:
            log.warning(
                "grace is over, running jobs are interrupted", jobs=[m.message_id for m in self.running]
            )
            for message in self.running:
                run = getattr(message, "run", None)
                if run is not None:
                    run.interrupt(Shutdown)
            finished = self._wait_for_runners(_INTERRUPT_GRACE)
        self._intake.flush(_INTERRUPT_GRACE)
        self._intake.close()
        self.broker.emit_after("worker_shutdown", self)
        return finished

    def _wait_for_runners(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        for thread in self._runners:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._runners)

    # -- claiming ----------------------------------------------------------------------------------------

    def _claim(self) -> None:
        while not self._stopping.is_set():
            try:
                room = self._room()
                if room <= 0:
                    # Woken by time, not by the runners: a hand-off a job would cost more than this nap.
                    self._stopping.wait(0.001)
                    continue
                fetched = self._intake.fetch(room, _FETCH_TIMEOUT)
                if fetched:
                    self._hand_over(fetched)
            except Exception:
                log.exception("claiming failed, it goes on in a second")
                self._stopping.wait(1.0)

    def _room(self) -> int:
        """How many more messages to claim: for the idle threads, and for the next 50 ms."""
        waiting = len(self._work)
        if self._mean_seconds <= 0:
            ahead = self.threads
        else:
            ahead = min(AHEAD_MOST, int(self.threads * AHEAD_SECONDS / self._mean_seconds))
        room = self.threads - len(self._running) + ahead - waiting
        # Many short jobs: claim in batches, not one by one as each is done.
        return room if room >= min(ahead // 2, 64) else 0

    def _hand_over(self, fetched: list[Delivery]) -> None:
        if self._stopping.is_set():
            self._give_back(fetched)
            return
        received = [self.broker.receive(delivery, self._intake) for delivery in fetched]
        messages = [message for message in received if message is not None]
        self._work.put(messages)
        if self._stopping.is_set():
            self._give_back([message.delivery for message in self._work.close()])

    def _give_back(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            self._intake.give_back(deliveries)
            log.info("gave back jobs that weren't started", count=len(deliveries))

    # -- running -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        thread, work, running = threading.get_ident(), self._work, self._running
        self.broker.emit_after("worker_thread_boot", threading.current_thread())
        while (message := work.get()) is not None:
            running[thread] = message
            started = time.perf_counter()
            try:
                self._process(message)
            except BaseException:
                log.exception(
                    "settling failed, the job stays claimed until this worker ends", job_id=message.message_id
                )
            finally:
                running.pop(thread, None)
                self._mean_seconds += (time.perf_counter() - started - self._mean_seconds) * 0.02
        self.broker.emit_before("worker_thread_shutdown", threading.current_thread())

    def _process(self, message: ClaimedMessage) -> None:
        """Run one message between its hooks, and settle it. The steps and signals are Dramatiq's."""
        broker = self.broker
        try:
            broker.emit_before("process_message", message)
        except SkipMessage as skip:
            if message.failed:
                message.stuff_exception(skip)
            broker.emit_after("skip_message", message)
        else:
            result: Any = None
            error: BaseException | None = None
            try:
                if not message.failed:
                    result = broker.actors[message.actor_name].fn(*message.args, **message.kwargs)
            except BaseException as raised:  # noqa: BLE001  whatever a job raises is its own failure
                error = raised
                message.stuff_exception(raised)
            broker.emit_after("process_message", message, result=result, exception=error)
        broker.finish(message)
        message.clear_exception()  # it refers to the frames of the run
