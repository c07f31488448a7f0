"""How a worker stops.

1. It claims nothing more, and gives back what no thread has started: at once, for other workers wait.
2. What runs may finish within the grace, and may fail and be retried as always.
3. When the grace is over, what still runs is interrupted: `dramatiq.middleware.Shutdown` is raised in the
   actor's body, and the job goes back uncounted.
4. The last acks are applied, and the intake is closed.

What can't be interrupted (it sits in C code, or catches everything) ends with the process; its claim ends
with that, and not before, so that it can't run twice at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dramatiq.middleware import Shutdown as ShutdownInterrupt

from callboard.brokers.base import Broker
from callboard.brokers.driver import Intake
from callboard.loggers import get_logger
from callboard.worker.work_queue import WorkQueue

if TYPE_CHECKING:
    from callboard.worker.worker import Worker

log = get_logger(__name__)

#: Seconds that interrupted jobs have to come to an end.
INTERRUPT_SECONDS = 3.0
#: Seconds that the last acks may take.
FLUSH_SECONDS = 5.0
_LOOK = 0.05


class Shutdown:
    """One worker's stop.

    Args:
        grace: Seconds that running jobs have to finish.
    """

    def __init__(
        self,
        broker: Broker,
        worker: Worker,
        intake: Intake,
        work: WorkQueue,
        claimer: threading.Thread,
        runners: Sequence[threading.Thread],
        *,
        grace: float,
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._intake = intake
        self._work = work
        self._claimer = claimer
        self._runners = runners
        self._ends = time.monotonic() + grace
        self._hurried = threading.Event()

    def hurry(self) -> None:
        """End the grace now."""
        self._hurried.set()

    def run(self) -> bool:
        """Stop; returns whether nothing runs any more."""
        self._broker.emit_before("worker_shutdown", self._worker)
        self._claim_nothing_more()
        finished = self._let_finish() or self._interrupt()
        self._let_go()
        self._broker.emit_after("worker_shutdown", self._worker)
        return finished

    def _claim_nothing_more(self) -> None:
        self._intake.pause(frozenset(self._worker.queue_names))
        self._intake.wake()
        self._worker.give_back(self._work.close())

    def _let_finish(self) -> bool:
        while time.monotonic() < self._ends:
            if not self._busy():
                return True
            if self._hurried.wait(_LOOK):
                break
        return not self._busy()

    def _interrupt(self) -> bool:
        if jobs := self._job_ids():
            log.warning("the grace is over, running jobs are interrupted", jobs=jobs)
        end = time.monotonic() + INTERRUPT_SECONDS
        while self._busy() and time.monotonic() < end:
            # Again and again: a run whose body hasn't begun can't be reached yet.
            for message in self._worker.running:
                if message.run is not None:
                    message.run.interrupt(ShutdownInterrupt)
            time.sleep(_LOOK)
        if self._busy():
            log.warning("jobs that can't be interrupted end with the process", jobs=self._job_ids())
        return not self._busy()

    def _let_go(self) -> None:
        self._claimer.join(timeout=FLUSH_SECONDS)
        if not self._intake.flush(FLUSH_SECONDS):
            log.warning("the last acks couldn't be applied; those jobs come again")
        if not self._busy():
            self._intake.close()  # which gives back what is claimed, so not while something runs

    def _busy(self) -> bool:
        return any(thread.is_alive() for thread in self._runners)

    def _job_ids(self) -> list[str]:
        return [message.message_id for message in self._worker.running]
