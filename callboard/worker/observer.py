"""What all workers share, as one process of this worker sees it: how full queues are, who lives.

The supervisor can't ask broker and store: it has nothing of the application, and mustn't wait. So a process beside
the workers asks every few seconds, and leaves what it found in memory that both share. Broker and store are asked
in a thread each, so that one that hangs doesn't hide the other. Looks that take long come less often. What is old
counts as unknown.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from callboard import queues
from callboard.brokers.base import Broker
from callboard.cron import Cron
from callboard.errors import CallboardError
from callboard.loggers import get_logger
from callboard.operations.schedulers import a_scheduler_lives
from callboard.operations.why import is_job_queue

log = get_logger(__name__)

INTERVAL = 5.0
#: Looking may take so much of the time.
_MOST_SHARE = 0.05
#: So many times the pause after a look, nobody knows any more.
_FRESH = 4
_SHORTEST = 5.0  # however short the pause: a machine may be busy

_HEAD = struct.Struct("=dQ")  # until when it can be believed, how many bytes
_BYTES = 1 << 20


class QueueSeen(msgspec.Struct, frozen=True):
    """A queue of jobs. None is what the driver can't tell."""

    name: str
    category: str
    priority: str
    ready: int
    claimed: int | None
    delayed: int | None
    consumers: int
    oldest: float | None


class BrokerSeen(msgspec.Struct, frozen=True):
    """What the broker said."""

    queues: list[QueueSeen]
    dead: dict[str, int]  # category -> letters
    quarantined: int
    schedules: int


class StoreSeen(msgspec.Struct, frozen=True):
    """What the store said."""

    workers: int
    consumers: dict[str, int]  # queue -> worker processes that consume it
    paused: frozenset[str]
    scheduler_lives: bool
    records_dropped: int


_Seen = TypeVar("_Seen", BrokerSeen, StoreSeen)


class Notice(Generic[_Seen]):
    """Where one process leaves what it has seen, for another. Made before they are forked.

    It has two pages: one is read while the other is written.
    """

    def __init__(self, kind: type[_Seen], clock: Callable[[], float] = time.monotonic) -> None:
        self._decode = msgspec.json.Decoder(kind | None).decode
        self._clock = clock  # one that all processes share
        self._memory = mmap.mmap(-1, 2 * _BYTES + 1)

    def put(self, seen: _Seen | None, *, lasts: float) -> None:
        """Leave what was seen, or None: that nothing can be. It can be believed for so many seconds."""
        data = msgspec.json.encode(seen)
        if len(data) > _BYTES - _HEAD.size:
            log.error("there are too many queues to tell of all")
            return
        page = 1 - self._memory[-1]
        start = page * _BYTES + _HEAD.size
        self._memory[start : start + len(data)] = data
        _HEAD.pack_into(self._memory, page * _BYTES, self._clock() + lasts, len(data))
        self._memory[-1] = page

    def get(self) -> _Seen | None:
        """What was seen last; None if that is nothing, or long ago."""
        page = self._memory[-1]
        until, length = _HEAD.unpack_from(self._memory, page * _BYTES)
        if not length or self._clock() > until:
            return None
        start = page * _BYTES + _HEAD.size
        try:
            found: _Seen | None = self._decode(self._memory[start : start + length])
        except msgspec.DecodeError:  # two wrote at once, as one was replaced by the other
            return None
        return found


class Observer:
    """Asks broker and store.

    Args:
        interval: Seconds between two looks.

    Attributes:
        broker: What the broker said last.
        store: What the store said last.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self.broker = Notice(BrokerSeen)
        self.store = Notice(StoreSeen)

    def run(self, broker: Broker, stop: threading.Event) -> None:
        """Look until the event is set: a companion of the worker's processes."""
        other = threading.Thread(
            target=self._look,
            args=(self.store, see_store, broker, stop),
            name="callboard-observer",
            daemon=True,
        )
        other.start()
        self._look(self.broker, see_broker, broker, stop)
        other.join()

    def _look(
        self,
        notice: Notice[_Seen],
        see: Callable[[Broker], _Seen | None],
        broker: Broker,
        stop: threading.Event,
    ) -> None:
        while True:
            began = time.monotonic()
            seen: _Seen | None = None
            try:
                seen = see(broker)
            except CallboardError as error:
                log.debug("can't be observed", error=str(error))
            except Exception:
                log.exception("observing failed")
            pause = (
                max(self._interval, (time.monotonic() - began) / _MOST_SHARE)
                if seen is not None
                else self._interval
            )
            notice.put(seen, lasts=_FRESH * max(pause, _SHORTEST))
            if stop.wait(pause):
                return


def see_broker(broker: Broker) -> BrokerSeen:
    """Ask the broker.

    Raises:
        BrokerUnavailable
    """
    driver = broker.driver
    counts = driver.counts(driver.queues())
    jobs = [name for name in counts if is_job_queue(name)]
    seen = []
    for name in jobs:
        count, (category, priority) = counts[name], queues.split(name)
        seen.append(
            QueueSeen(
                name,
                category,
                priority.word,
                count.ready,
                count.claimed,
                count.delayed,
                count.consumers,
                count.oldest,
            )
        )
    dead = {
        name.removesuffix(".dead"): count.ready + (count.claimed or 0)
        for name, count in counts.items()
        if name != queues.QUARANTINE and not is_job_queue(name)
    }
    quarantine = counts.get(queues.QUARANTINE)
    return BrokerSeen(
        queues=sorted(seen, key=lambda queue: queue.name),
        dead=dead,
        quarantined=0 if quarantine is None else quarantine.ready + (quarantine.claimed or 0),
        schedules=sum(isinstance(actor.options.get("periodic"), Cron) for actor in broker.actors.values()),
    )


def see_store(broker: Broker) -> StoreSeen | None:
    """Ask the store; None if there is none.

    Raises:
        StoreUnavailable
    """
    store = broker.store
    if store is None:
        return None
    workers, control = store.workers(), store.control()
    consumers: dict[str, int] = {}
    for worker in workers:
        for queue in worker.queues:
            consumers[queue] = consumers.get(queue, 0) + 1
    return StoreSeen(
        workers=len(workers),
        consumers=consumers,
        paused=control.paused if control is not None else frozenset(),
        scheduler_lives=a_scheduler_lives(store),
        records_dropped=store.counters("records.dropped").get("records.dropped", 0),
    )
