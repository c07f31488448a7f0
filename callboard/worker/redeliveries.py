"""Jobs that were delivered before: each is looked at, and may have to wait, before it starts here.

A broker whose claims are no leases (RabbitMQ) delivers a job again when a connection is gone, and can't know
whether the worker behind it is gone, too. So such a job waits two seconds, in which a run that is nearly done
ends. It waits in the claiming thread's timer and holds no thread. Then it is looked at: while it runs in any
process of this worker, or has ended there just now, or somebody holds its lease in the store, or the store can't
be read, it goes on waiting; if its claim is gone meanwhile, it is somebody else's; otherwise it may start. That it has
ended long since is told by its record, when it is about to start (`callboard.brokers.copies`).

A store that was away for a while has leases that have run out because nobody could renew them. Those who run the jobs
are about to, and to write down what has ended meanwhile. So when it is back, no redelivered job starts for as long as
a lease lasts.

On every driver it is looked up whether a worker died while it ran the job (`callboard.worker.cut_runs`). Then it
goes back to the broker for a pause, is dead, or, when it has had its pause, runs alone.

What may start and finds no free thread for a while is given back, so that nothing is hoarded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from callboard.brokers import copies
from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.store.base import Store
from callboard.store.leases import LEASE, free_lease, lease_owner, take_lease
from callboard.worker.cut_runs import CutRunMemory, cut_runs, settle_cut_run

log = get_logger(__name__)

#: Seconds that a job waits before it is looked at.
WAIT = 2.0
_LOOK_AGAIN = 0.5
#: The same where claims are leases: what still runs here has died, and the supervisor sees that in a moment.
_LOOK_AGAIN_SOON = 0.05
#: Seconds for which what may start waits for a free thread.
_HOARD = 5.0
#: Seconds within which another process of this worker writes down that a job has ended.
_WRITTEN = 1.0


class Redeliveries:
    """What waits. All of it is for the claiming thread.

    Args:
        broker: Where the jobs come from.
        is_running: Whether a job runs in this worker, in whichever process.
        deaths: What the supervisor has noted of processes that died.
        lease_owner: Who holds the leases of this worker, if jobs have any: then what may start has one.
        wait: Seconds that a job waits before it is looked at.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        broker: Broker,
        is_running: Callable[[str], bool],
        *,
        deaths: CutRunMemory | None = None,
        lease_owner: str | None = None,
        wait: float = WAIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._is_running = is_running
        self._deaths = deaths
        self._lease_owner = lease_owner
        self._claims_are_leases = broker.driver.claims_are_leases
        self._wait = 0.0 if self._claims_are_leases else wait
        self._look_again = _LOOK_AGAIN_SOON if self._claims_are_leases else _LOOK_AGAIN
        self._clock = clock
        self._store_failed = float("-inf")  # when it couldn't be read
        self._waiting: deque[tuple[float, ClaimedMessage]] = deque()  # when it is looked at
        self._cleared: deque[tuple[float, ClaimedMessage]] = deque()  # since when it may start
        self._suspects: list[tuple[ClaimedMessage, float]] = []  # and when each one's last run was cut short
        self._not_before: dict[str, float] = {}  # until when no copy of a job may start

    def __len__(self) -> int:
        return len(self._waiting) + len(self._cleared) + len(self._suspects)

    def concerns(self, message: ClaimedMessage) -> bool:
        """Whether a message that was just claimed has to wait here."""
        return message.delivery.redelivered or bool(message.headers.crashes)

    def hold(self, message: ClaimedMessage) -> None:
        """Have a message wait."""
        wait = self._wait if message.delivery.redelivered else 0.0
        self._waiting.append((self._clock() + wait, message))

    def patience(self) -> float:
        """Seconds until there is something to look at."""
        if not self._waiting:
            return float("inf")
        return max(0.0, min(due for due, _ in self._waiting) - self._clock())

    def take(self, limit: int) -> list[ClaimedMessage]:
        """Up to so many that may start now."""
        if self._waiting:
            self._look()
        taken: list[ClaimedMessage] = []
        while self._cleared and len(taken) < limit:
            taken.append(self._cleared.popleft()[1])
        return taken

    def take_suspects(self) -> list[tuple[ClaimedMessage, float]]:
        """Those that may start now, but alone, and when their last runs were cut short."""
        taken, self._suspects = self._suspects, []
        return taken

    def surplus(self) -> list[ClaimedMessage]:
        """What might have started for a while, and found no thread."""
        given: list[ClaimedMessage] = []
        while self._cleared and self._clock() - self._cleared[0][0] > _HOARD:
            given.append(self._cleared.popleft()[1])
        self.free_leases(given)
        return given

    def close(self) -> list[ClaimedMessage]:
        """All that waits: it waits no more."""
        leased = [message for _, message in self._cleared] + [message for message, _ in self.take_suspects()]
        left = [message for _, message in self._waiting] + leased
        self._waiting.clear()
        self._cleared.clear()
        self.free_leases(leased)
        return left

    def _look(self) -> None:
        now = self._clock()
        self._not_before = {job_id: until for job_id, until in self._not_before.items() if now < until}
        for _ in range(len(self._waiting)):
            due, message = self._waiting.popleft()
            if due > now:
                self._waiting.append((due, message))
            elif not message.intake.holds(message.delivery):
                log.info("a redelivered job is somebody else's by now", job_id=message.message_id)
            elif self._may_start(message, now):
                self._clear(message, now)
            else:
                self._waiting.append((now + self._look_again, message))

    def _clear(self, message: ClaimedMessage, now: float) -> None:
        """Let a message start, unless earlier runs were cut short."""
        headers = message.headers
        runs = cut_runs(
            self._broker.store, self._deaths, message.message_id, since=headers.replayed_at or 0.0
        )
        if len(runs) > headers.crashes and not self._is_overtaken(message):
            self.free_leases([message])
            settle_cut_run(self._broker, message, runs)
            return
        # Another copy of it is about to start here, or just has.
        self._not_before[message.message_id] = now + _HOARD + self._wait
        if headers.crashes:
            self._suspects.append((message, runs[-1].at if runs else self._broker.clock()))
        else:
            self._cleared.append((now, message))

    def _is_overtaken(self, message: ClaimedMessage) -> bool:
        try:
            return copies.is_overtaken(self._broker, message)
        except StoreUnavailable:
            return False

    def _may_start(self, message: ClaimedMessage, now: float) -> bool:
        job_id = message.message_id
        if self._is_running(job_id):
            self._not_before[job_id] = now + _WRITTEN
            return False
        if self._claims_are_leases:
            return True
        if job_id in self._not_before:
            return False
        store = self._broker.store
        return store is None or self._is_free(store, job_id, now)

    def _is_free(self, store: Store, job_id: str, now: float) -> bool:
        """Whether nobody has a job's lease. Then this worker has it, if its jobs have any."""
        control = self._broker.control
        steady_for = control.steady_for if control is not None else float("inf")
        if min(steady_for, now - self._store_failed) < LEASE:
            return False
        try:
            holder = lease_owner(store, job_id)
            if self._lease_owner is None or holder not in (None, self._lease_owner):
                return holder is None
            # Only now: a store that is frozen just then takes what it was asked to when it goes on.
            return take_lease(store, job_id, self._lease_owner)
        except StoreUnavailable as error:
            log.warning("redelivered jobs wait: the store, which has their leases, is away", error=str(error))
            self._store_failed = now
            return False

    def free_leases(self, messages: Iterable[ClaimedMessage]) -> None:
        """Free the leases of what was to start here, and won't. One that can't be freed ends by itself. For any
        thread."""
        if self._lease_owner is None or self._broker.store is None:
            return
        with suppress(StoreUnavailable):
            for message in filter(self.concerns, messages):
                if not self._is_running(message.message_id):  # another copy of it does, by this lease
                    free_lease(self._broker.store, message.message_id, self._lease_owner)
