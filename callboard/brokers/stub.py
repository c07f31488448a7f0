"""The stub driver: messages wait in this process's memory, for tests and for trying things out.

It keeps every rule of `callboard.brokers.driver` but one: nothing survives the process.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from callboard.brokers.driver import (
    Decide,
    Delivery,
    Driver,
    Intake,
    IntakeOptions,
    Location,
    Outgoing,
    PutError,
    QueueCounts,
    StoredMessage,
    Verdict,
    WalkReport,
)
from callboard.queues import priority_of


@dataclass(slots=True, eq=False)
class _Stored:
    serial: int
    queue: str
    body: bytes
    headers: bytes
    job_id: str
    due: float | None
    owner: StubIntake | None = None
    redelivered: bool = False


@dataclass(slots=True)
class _Queue:
    ready: list[_Stored] = field(default_factory=list)  # by serial
    delayed: list[_Stored] = field(default_factory=list)  # by (due, serial)
    claimed: dict[int, _Stored] = field(default_factory=dict)


class StubDriver(Driver):
    """Queues in memory.

    Args:
        clock: Seconds since the epoch. A clock that a test moves must call `wake` afterwards.
    """

    name = "stub"
    claims_are_leases = True
    puts_async = True

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.changed = threading.Condition()
        self.fail_puts: str | None = None  # a test sets the reason for which every put and move fails
        self._queues: dict[str, _Queue] = {}
        self._declared: set[str] = set()
        self._serials = itertools.count()
        self._walks: dict[str, threading.Lock] = {}
        self._intakes: set[StubIntake] = set()
        self._closed = False

    def declare(self, queue: str) -> None:
        self._declared.add(queue)

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        del deadline
        with self.changed:
            self._put(messages)
            self.changed.notify_all()

    async def put_async(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        await asyncio.sleep(0)  # a place to be cancelled at, as with a server
        self.put(messages, deadline=deadline)

    def _put(self, messages: Sequence[Outgoing]) -> None:
        if self._closed or self.fail_puts is not None:
            raise PutError(self.fail_puts or "the stub driver is closed", not_queued=messages)
        for message in messages:
            stored = _Stored(
                next(self._serials), message.queue, message.body, message.headers, message.job_id, message.due
            )
            queue = self._queue(message.queue)
            if message.due is not None and message.due > self.clock():
                bisect.insort(queue.delayed, stored, key=_by_due)
            else:
                queue.ready.append(stored)

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())

    def _promote(self) -> float | None:
        """Make what is due ready; returns when the next message is due."""
        now = self.clock()
        next_due: float | None = None
        for queue in self._queues.values():
            while queue.delayed and (queue.delayed[0].due or 0) <= now:
                bisect.insort(queue.ready, queue.delayed.pop(0), key=_by_serial)
            if queue.delayed and (next_due is None or (queue.delayed[0].due or 0) < next_due):
                next_due = queue.delayed[0].due
        return next_due

    def next_due(self) -> float | None:
        """When the next delayed message is due, for a test that moves its clock there."""
        with self.changed:
            return self._promote()

    def wake(self) -> None:
        """Look again at what is due: the clock was moved."""
        with self.changed:
            self.changed.notify_all()

    def open_intake(self, options: IntakeOptions) -> Intake:
        intake = StubIntake(self, options)
        with self.changed:
            self._intakes.add(intake)
        return intake

    def queues(self) -> list[str]:
        with self.changed:
            return sorted(self._declared | set(self._queues))

    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        with self.changed:
            self._promote()
            return {name: self._counts(name) for name in queues}

    def _counts(self, name: str) -> QueueCounts:
        queue = self._queues.get(name, _Queue())
        consumers = sum(name in intake.options.queues for intake in self._intakes)
        return QueueCounts(len(queue.ready), len(queue.claimed), len(queue.delayed), consumers)

    def purge(self, queue: str) -> int:
        with self.changed:
            found = self._queue(queue)
            gone = len(found.ready) + len(found.delayed)
            found.ready.clear()
            found.delayed.clear()
            return gone

    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        report = WalkReport()
        with self.changed:
            walking = self._walks.setdefault(queue, threading.Lock())
        with walking:
            with self.changed:
                self._promote()
                found = list(self._queue(queue).ready)
            for stored in found:
                verdict = decide(StoredMessage(stored.queue, stored.body, stored.headers))
                report.seen += 1
                if verdict is Verdict.KEEP:
                    report.kept += 1
                else:
                    self._take_out(stored, verdict, report)
                if progress is not None:
                    progress(report.seen, len(found))
        return report

    def _take_out(self, stored: _Stored, verdict: Outgoing | Verdict, report: WalkReport) -> None:
        with self.changed:
            ready = self._queue(stored.queue).ready
            if stored not in ready:  # claimed or purged meanwhile
                report.kept += 1
                return
            if isinstance(verdict, Outgoing):
                self._put([verdict])
                report.moved += 1
                self.changed.notify_all()
            else:
                report.discarded += 1
            ready.remove(stored)

    def locate(self, job_id: str) -> Location | None:
        with self.changed:
            self._promote()
            for name, queue in self._queues.items():
                for stored in (*queue.ready, *queue.delayed, *queue.claimed.values()):
                    if stored.job_id == job_id:
                        owner = stored.owner.options.worker if stored.owner is not None else None
                        waits = stored in queue.delayed
                        return Location(name, owner, stored.due if waits else None)
        return None

    def close(self) -> None:
        for intake in list(self._intakes):
            intake.close()
        self._closed = True


class StubIntake(Intake):
    """A hand on a `StubDriver`."""

    def __init__(self, driver: StubDriver, options: IntakeOptions) -> None:
        self.options = options
        self._driver = driver
        self._paused = options.paused
        self._woken = False
        self._open = True
        self._claims = 0

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        driver, end = self._driver, time.monotonic() + timeout
        with driver.changed:
            while True:
                next_due = driver._promote()
                taken = self._take(limit) if self._open else []
                left = end - time.monotonic()
                if taken or self._woken or left <= 0:
                    self._woken = False
                    return taken
                if next_due is not None:
                    left = min(left, max(0.0, next_due - driver.clock()))
                driver.changed.wait(left)

    def _take(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        held = sum(stored.owner is self for queue in self._mine() for stored in queue.claimed.values())
        for _ in range(min(limit, self.options.budget - held)):
            heads = [queue.ready[0] for queue in self._mine(unpaused=True) if queue.ready]
            if not heads:
                break
            self._claims += 1
            if self._claims % 8 == 0:
                head = min(heads, key=_by_serial)
            else:
                head = min(heads, key=lambda stored: (priority_of(stored.queue), stored.serial))
            queue = self._driver._queue(head.queue)
            queue.ready.pop(0)
            queue.claimed[head.serial] = head
            head.owner = self
            taken.append(Delivery(head.queue, head.body, head.headers, head.serial, head.redelivered))
        return taken

    def _mine(self, *, unpaused: bool = False) -> list[_Queue]:
        names = [name for name in self.options.queues if not (unpaused and name in self._paused)]
        return [self._driver._queue(name) for name in names]

    def wake(self) -> None:
        with self._driver.changed:
            self._woken = True
            self._driver.changed.notify_all()

    def ack(self, delivery: Delivery) -> None:
        with self._driver.changed:
            if self._has(delivery):
                del self._driver._queue(delivery.queue).claimed[delivery.token]
                self._driver.changed.notify_all()

    def move(self, delivery: Delivery, outgoing: Outgoing) -> None:
        with self._driver.changed:
            if not self._has(delivery):
                raise PutError("the claim is gone", not_queued=[outgoing])
            self._driver._put([outgoing])
            del self._driver._queue(delivery.queue).claimed[delivery.token]
            self._driver.changed.notify_all()

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        with self._driver.changed:
            self._give_back(deliveries, redelivered=False)

    def _give_back(self, deliveries: Iterable[Delivery], *, redelivered: bool) -> None:
        for delivery in deliveries:
            if self._has(delivery):
                queue = self._driver._queue(delivery.queue)
                stored = queue.claimed.pop(delivery.token)
                stored.owner = None
                stored.redelivered = stored.redelivered or redelivered
                bisect.insort(queue.ready, stored, key=_by_serial)
        self._driver.changed.notify_all()

    def _has(self, delivery: Delivery) -> bool:
        stored = self._driver._queue(delivery.queue).claimed.get(delivery.token)
        return stored is not None and stored.owner is self

    def holds(self, delivery: Delivery) -> bool:
        with self._driver.changed:
            return self._has(delivery)

    def crash(self) -> None:
        """As if the worker were killed: what it holds comes back as redelivered."""
        with self._driver.changed:
            self._leave(redelivered=True)

    def pause(self, queues: frozenset[str]) -> None:
        with self._driver.changed:
            self._paused = queues
            self._driver.changed.notify_all()

    def flush(self, timeout: float) -> bool:
        del timeout
        return True

    def close(self) -> None:
        with self._driver.changed:
            self._leave(redelivered=False)

    def _leave(self, *, redelivered: bool) -> None:
        for name in self.options.queues:
            queue = self._driver._queue(name)
            mine = [s for s in queue.claimed.values() if s.owner is self]
            self._give_back(
                [Delivery(name, s.body, s.headers, s.serial) for s in mine], redelivered=redelivered
            )
        self._open = False
        self._driver._intakes.discard(self)
        self._driver.changed.notify_all()


def _by_serial(stored: _Stored) -> int:
    return stored.serial


def _by_due(stored: _Stored) -> tuple[float, int]:
    return (stored.due or 0.0, stored.serial)
