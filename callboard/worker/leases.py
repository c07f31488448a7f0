"""Leases: the store's word on which worker a long job belongs to.

RabbitMQ gives a job to somebody else when a connection is gone, and can't know whether the worker behind it goes on.
So whoever runs a job for longer than half a second has a lease on it in the store, and who gets it again waits until
the lease is free (`callboard.worker.redeliveries`).

A process beside the workers writes the leases, from the slots that tell what they run: a job that keeps Python's
lock, or a process that is stopped, doesn't keep a lease from being renewed. All leases of one worker have one
owner, since its slots tell what runs in any of its processes. A lease is freed when its job has ended, a second
later, so that the job's record is written before others look; or when the process has ended, at once.

A lease lasts ten seconds by the store's clock. Whoever isn't heard of for that long has lost it, for instance a
host that was frozen or cut off. Until when a run may rely on its own is kept in its slot. If that has passed when
the run ends, or keeps a checkpoint, it asks the store first. A run that has lost its lease is interrupted, and what
it came to is nobody's business: its result isn't stored, its checkpoints are refused, nothing of it is recorded.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, job_order
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.process import worker_name
from callboard.states import State
from callboard.store.base import Store
from callboard.store.leases import LEASE, free_lease, lease_owner, take_lease
from callboard.worker.redeliveries import WAIT
from callboard.worker.slots import LOST, Slot, SlotMemory, Slots

log = get_logger(__name__)

_RENEW = 2.5
#: Seconds that a job runs before its lease is asked for, at the next look.
HELD_FROM, _LOOK = 0.3, 0.2
_TRY_AGAIN = 0.5
#: Seconds for which a run that has ended waits for a store that is away to say whether it counts.
_WORTH = 60.0
#: Seconds that a lease is held after its job has ended, if its process goes on.
_LINGER = 1.0


def new_owner() -> str:
    """Who holds the leases of a worker that starts: its host, its supervisor, and that no other has the same."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(6).hex()}"


def needs_leases(broker: Broker) -> bool:
    """Whether jobs have leases: the broker takes claims back from workers that live, and there is a store."""
    return not broker.driver.claims_are_leases and broker.store is not None


@dataclass(slots=True)
class _Lease:
    slots: list[Slot] = field(default_factory=list)  # that run the job
    due: float = 0.0  # when it is to be renewed
    until: float = 0.0  # when it ends unless it is
    elsewhere_since: float | None = None  # since when we have found it to be somebody else's
    ended: float | None = None  # when the job had
    lost: bool = False


class Leases:
    """What the process beside the workers does.

    Args:
        memory: What they run.
        owner: Who holds their leases.
        clock: Monotonic seconds, the same that `memory` has.
    """

    def __init__(
        self, memory: SlotMemory, owner: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = memory
        self._owner = owner
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._away = False
        self._newest = mmap.mmap(-1, 8)  # the process that does this; after a reload, another one

    def run(self, broker: Broker, stop: threading.Event) -> None:
        """Look until the event is set: a companion of the worker's processes. If the whole worker stops, this goes on
        for as long as anything runs: what can't be interrupted does so until its process is killed."""
        me = os.getpid().to_bytes(8, "little")
        self._newest[:] = me
        while not stop.wait(_LOOK):
            self._look(broker)
        while self._newest[:] == me and (self._memory.running() or (self._leases and not self._away)):
            self._look(broker)
            time.sleep(_LOOK)

    def _look(self, broker: Broker) -> None:
        if broker.store is not None:
            self.look(broker.store)

    def look(self, store: Store) -> None:
        """Take, renew and free what is due. While the store is away, nothing is: what isn't renewed ends by itself."""
        now = self._clock()
        self._note(self._memory.running(), now)
        try:
            for job_id, lease in list(self._leases.items()):
                if not lease.slots:
                    self._free(store, job_id, lease, now)
                elif now >= lease.due and not lease.lost:
                    self._renew(store, job_id, lease)
        except StoreUnavailable as error:
            if not self._away:
                log.warning("leases can't be renewed: the store is away", error=str(error))
            self._away = True

    def _note(self, running: Iterable[Slot], now: float) -> None:
        """Bring what we know of to what runs."""
        for lease in self._leases.values():
            lease.slots = []
        for slot in running:
            if slot.job_id not in self._leases:
                if now - slot.started < HELD_FROM:
                    continue
                self._leases[slot.job_id] = _Lease(until=slot.lease or 0.0, lost=slot.lease == LOST)
            lease = self._leases[slot.job_id]
            lease.slots.append(slot)
            lease.ended = None
            if lease.until > 0 and slot.lease is None and not lease.lost:
                self._memory.set_lease(slot, lease.until)

    def _renew(self, store: Store, job_id: str, lease: _Lease) -> None:
        began = self._clock()
        lease.due = began + _TRY_AGAIN
        taken, self._away = take_lease(store, job_id, self._owner), False
        if taken:
            lease.due, lease.until, lease.elsewhere_since = began + _RENEW, began + LEASE, None
        elif lease.until > 0 or began - (lease.elsewhere_since or began) > LEASE + _RENEW:
            log.warning("a run has lost its lease, another worker has its job", job_id=job_id)
            lease.lost, lease.until = True, LOST
        else:
            # It may be what an earlier run has left: that ends by itself.
            lease.elsewhere_since = lease.elsewhere_since or began
            return
        for slot in lease.slots:
            self._memory.set_lease(slot, lease.until)

    def _free(self, store: Store, job_id: str, lease: _Lease, now: float) -> None:
        lease.ended = lease.ended or now
        if now - lease.ended < _LINGER and any(pid != os.getpid() for pid in self._memory.pids()):
            return
        del self._leases[job_id]
        if not lease.lost:
            free_lease(store, job_id, self._owner)
            self._away = False


class Fence:
    """What a run asks whether its job is still its own.

    Args:
        broker: Whose store has the leases.
        slots: Those of its process.
        owner: Who holds the leases of its worker.
        clock: Monotonic seconds.
    """

    def __init__(
        self, broker: Broker, slots: Slots, owner: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._owner = owner
        self._clock = clock

    def holds(self, message: ClaimedMessage, thread: int, *, ask: bool = True) -> bool:
        """Whether the run of a message, in a thread, may still tell what it came to.

        One that was short may: before two seconds nobody starts what he gets again. If its lease has run out, the
        store is asked, and the job's record, as another run may have come and gone. While the store is away, it may if
        it has its claim.

        Args:
            ask: Whether the store may be asked, which can take seconds. Otherwise one whose lease has run out may not.

        Raises:
            StoreUnavailable: That can't be told.
        """
        seconds = 0.0 if message.run is None else time.monotonic() - message.run.started
        if seconds < HELD_FROM:
            return True
        slot, store = self._slots.run_of(thread), self._broker.store
        if slot is None or store is None:
            return True
        if slot.lease is None:
            return seconds < WAIT or not ask or self._is_alone(store, message)
        if slot.lease == LOST:
            return False
        if self._clock() < slot.lease:
            return True
        if not ask:
            return False
        try:
            return take_lease(store, slot.job_id, self._owner) and not _ran_elsewhere(store, message)
        except StoreUnavailable:
            if message.intake.holds(message.delivery):
                return True
            raise

    def holds_at_its_end(self, message: ClaimedMessage, thread: int) -> bool:
        """The same of a run that has ended: what it came to is worth a minute, in which the store may be back."""
        until = self._clock() + _WORTH
        while True:
            try:
                return self.holds(message, thread)
            except StoreUnavailable:
                if self._clock() > until or self._broker.stopping.wait(_TRY_AGAIN):
                    return False

    def _is_alone(self, store: Store, message: ClaimedMessage) -> bool:
        """Whether nobody else has run the job of a long run that never had a lease: its host was frozen before, or the
        store is away. In that case nobody starts what he gets again."""
        try:
            if _ran_elsewhere(store, message):
                return False
            # Somebody else's may be what an earlier attempt has left.
            return message.intake.holds(message.delivery) or lease_owner(store, message.message_id) in (
                None,
                self._owner,
            )
        except StoreUnavailable:
            return True


def _ran_elsewhere(store: Store, message: ClaimedMessage) -> bool:
    """Whether somebody else has started the job since this run did.

    Raises:
        StoreUnavailable
    """
    record, here = store.get(message.message_id), job_order(message, State.RUNNING)
    if record is None or record.order < here:
        return False
    return record.order > here or record.worker not in ("", worker_name())
