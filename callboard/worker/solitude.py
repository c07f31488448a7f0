"""Jobs that run alone in their process, since an earlier run of theirs ended with one that died.

A job that is due to run so lets its process claim nothing more and give back what hasn't started. When nothing
runs any more, and what became of the others is acknowledged and recorded, it starts, and until it ends nothing else
does. So whatever it does to its process, it does to nobody else; and if the process dies, it is certain of what.

What runs beside it may take long. A process waits for that, but not for ever: then the job waits in the broker,
where another process finds it, and comes back to more patience.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, Later
from callboard.loggers import get_logger
from callboard.states import State
from callboard.worker.work_queue import WorkQueue

log = get_logger(__name__)

_PATIENCE_LEAST = 10.0
#: A job for which its process would stand still for an hour has been waiting for two.
_PATIENCE_SHARE = 0.5
_LOOK = 0.02
#: Seconds within which acknowledgements and records are written.
_WRITTEN = 5.0


class Solitude:
    """What runs alone, one after the other. For the claiming thread, which alone adds work.

    Args:
        broker: Where jobs that can't be alone go back to.
        work: Where the threads of the process take their jobs from.
        threads: How many there are.
        clock: Monotonic seconds.
    """

    def __init__(
        self, broker: Broker, work: WorkQueue, threads: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._work = work
        self._threads = threads
        self._clock = clock
        self._waiting: deque[tuple[ClaimedMessage, float]] = deque()  # and when its run was cut short
        self._alone = False  # something runs alone
        self._since: float | None = None  # when this process began to run empty

    def __bool__(self) -> bool:
        return self._alone or bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: ClaimedMessage, cut_at: float) -> None:
        """Have a message run alone.

        Args:
            message: Which.
            cut_at: When its last run was cut short, in seconds since the epoch.
        """
        self._waiting.append((message, cut_at))

    def turn(self) -> tuple[float, list[ClaimedMessage]]:
        """Go on: start the next one if nothing runs.

        Returns:
            Seconds until the next turn, and the unstarted messages that have to go back.
        """
        idle = self._work.is_idle(self._threads)
        if self._alone and not idle:
            return _LOOK, []
        self._alone = False
        if not self._waiting:
            return 0.0, []
        if idle:
            message, _ = self._waiting.popleft()
            self._since = None
            if message.intake.holds(message.delivery):
                self._write_down(message)
                log.info("a job runs alone in its process", job_id=message.message_id)
                self._alone = True
                self._work.put(message)
            return _LOOK, []
        self._run_empty()
        return _LOOK, self._work.give_up(len(self._work))

    def close(self) -> list[ClaimedMessage]:
        """What hasn't started, and won't."""
        left = [message for message, _ in self._waiting]
        self._waiting.clear()
        return left

    def _write_down(self, message: ClaimedMessage) -> None:
        """Have what other jobs came to acknowledged and recorded, before this one may end the process."""
        message.intake.flush(_WRITTEN)
        if self._broker.recorder is not None:
            self._broker.recorder.flush(_WRITTEN)

    def _run_empty(self) -> None:
        now = self._clock()
        if self._since is None:
            self._since = now
        waited = now - self._since
        longest = max(self._broker.clock() - cut_at for _, cut_at in self._waiting)
        if waited > max(_PATIENCE_LEAST, longest * _PATIENCE_SHARE):
            self._since = None
            for message in self.close():
                message.disposition = Later(
                    State.RETRYING,
                    due=self._broker.clock() + waited,
                    reason="it has to run alone, since an earlier run was cut short, and its worker ran others",
                )
                self._broker.finish(message)
