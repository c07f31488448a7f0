"""Queues: how full they are, who consumes them; pausing, resuming and purging them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from callboard import envelope, queues
from callboard.brokers import unique
from callboard.brokers.base import Broker
from callboard.brokers.driver import StoredMessage, Verdict
from callboard.brokers.receiving import RECEIVE_LIMIT
from callboard.errors import NotPossible, StoreUnavailable, UnknownQueue, Unreadable
from callboard.loggers import get_logger
from callboard.operations.audit import Audit
from callboard.operations.quarantine import unique_keys
from callboard.operations.records import BATCH, records_of
from callboard.operations.why import can_locate, is_job_queue
from callboard.states import State, order
from callboard.store.base import Change, Heartbeat, Query, Store

log = get_logger(__name__)

_WAITING = (State.QUEUED, State.SCHEDULED, State.RETRYING, State.SNOOZED, State.PARKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """A queue of jobs, of dead letters, or the quarantine.

    Attributes:
        kind: 'jobs', 'dead' or 'quarantine'.
        ready: What can be claimed now.
        claimed: What workers hold; None where the broker can't tell.
        delayed: What isn't due yet; None where the broker can't tell.
        consumers: How many workers consume it, as far as the broker or the signs of life tell.
        paused: None where the store can't be asked.
    """

    name: str
    kind: str
    category: str
    priority: str
    ready: int
    claimed: int | None
    delayed: int | None
    consumers: int
    paused: bool | None


@dataclass(slots=True, kw_only=True)
class PurgeResult:
    """What a purge threw away: how many messages, and whether the store has taken it all."""

    queue: str
    count: int
    recorded: bool = True


class Queues:
    """The queues of a broker.

    Args:
        broker: Whose.
        audit: Where each act is written down.
    """

    def __init__(self, broker: Broker, audit: Audit) -> None:
        self._broker = broker
        self._audit = audit

    def search(self, pattern: str = "*") -> list[QueueStatus]:
        """The queues whose names fit a pattern such as `email.*`; by category, then by priority.

        Raises:
            BrokerUnavailable
        """
        names = [name for name in self._names() if fnmatchcase(name, pattern)]
        counts = self._broker.driver.counts(names)
        paused, workers = self._control()
        statuses = []
        for name in names:
            count = counts[name]
            kind = "jobs" if is_job_queue(name) else "quarantine" if name == queues.QUARANTINE else "dead"
            category, priority = queues.split(name) if kind == "jobs" else (name.removesuffix(".dead"), None)
            statuses.append(
                QueueStatus(
                    name=name,
                    kind=kind,
                    category="" if kind == "quarantine" else category,
                    priority=priority.word if priority is not None else "",
                    ready=count.ready,
                    claimed=count.claimed,
                    delayed=count.delayed,
                    consumers=max(count.consumers, sum(name in worker.queues for worker in workers)),
                    paused=None if paused is None else name in paused,
                )
            )
        return sorted(statuses, key=_place)

    def create(self) -> list[str]:
        """Create what the declared actors need, for those who may send and not create. Returns the names; none
        where the broker needs no creating.

        Raises:
            BrokerUnavailable
            CallboardError: The broker doesn't permit it, or a queue exists with other arguments.
        """
        return self._broker.driver.create_queues()

    def pause(self, pattern: str) -> list[str]:
        """Ask workers to claim nothing more from the queues that fit; what runs goes on. Returns their names.

        Raises:
            UnknownQueue
            StoreUnavailable
        """
        names = self._matching(pattern)
        for name in names:
            self._store().pause(name)
        self._audit.done("queues.pause", pattern, count=len(names), queues=names)
        return names

    def resume(self, pattern: str) -> list[str]:
        """Undo `pause`, for the paused queues that fit. Returns their names.

        Raises:
            UnknownQueue
            StoreUnavailable
        """
        control = self._store().control()
        paused = control.paused if control is not None else frozenset()
        # Also a paused queue that no driver knows any more.
        names = sorted(name for name in paused if fnmatchcase(name, pattern)) or self._matching(pattern)
        for name in names:
            self._store().resume(name)
        self._audit.done("queues.resume", pattern, count=len(names), queues=names)
        return names

    def purge(self, name: str, *, progress: Callable[[int, int], None] | None = None) -> PurgeResult:
        """Throw away the jobs that wait in a queue; those that run go on. It is audited before and after,
        and the records of the jobs say so. Unique ones let go of their keys.

        On RabbitMQ, what isn't due yet stays.

        Raises:
            UnknownQueue
            NotPossible: It is no queue of jobs.
            StoreUnavailable: It can't be audited, so nothing was thrown away.
            BrokerUnavailable: Some may have been thrown away; the audit says that it was begun.
        """
        if not is_job_queue(name):
            command = "quarantine discard" if name == queues.QUARANTINE else "dead discard"
            raise NotPossible(f"'{name}' holds no waiting jobs; use 'callboard {command}'")
        if name not in self._names():
            raise self._not_found(name)
        self._audit.announce("queues.purge", name)
        now, text = self._broker.clock(), f"purged from {name} by {self._audit.who}"
        gone: dict[str, int] = {}  # id -> the order of its record
        keys: set[tuple[str, str]] = set()

        def throw_away(message: StoredMessage) -> Verdict:
            if (known := _identity(message)) is not None:
                job_id, newest = known
                gone[job_id] = max(newest, gone.get(job_id, 0))
            keys.update(self._keys_of(message))
            return Verdict.DISCARD

        # Not `driver.purge` at once: that doesn't tell which jobs it drops.
        report = self._broker.driver.walk(name, throw_away, progress=progress)
        result = PurgeResult(queue=name, count=report.discarded + self._broker.driver.purge(name))
        unique.release(self._broker.store, sorted(keys))
        try:
            self._record(name, gone, now, text)
        except StoreUnavailable as error:
            log.warning("the records of purged jobs are behind: the store is away", error=str(error))
            result.recorded = False
        self._audit.done("queues.purge", name, count=result.count)
        return result

    def _record(self, name: str, gone: dict[str, int], now: float, text: str) -> None:
        """Have the records say what became of the jobs: of those that were seen, and of the delayed ones, which
        were not, where the broker can tell that it doesn't have them any more.

        A worker may have been quicker than the walk. So the change ranks below what a run would record.
        """
        driver = self._broker.driver
        locatable = can_locate(driver)
        for record in records_of(self._store(), Query(states=_WAITING, queues=[name])):
            if record.job_id in gone or (
                locatable and record.updated_at <= now and driver.locate(record.job_id) is None
            ):
                gone[record.job_id] = max(record.order, gone.get(record.job_id, 0))
        changes = [
            Change(
                job_id=job_id,
                order=newest + 2,
                state=State.DISCARDED,
                at=now,
                queue=name,
                category=queues.category_of(name),
                priority=int(queues.priority_of(name)),
                finished_at=now,
                reason=text,
                event=text,
            )
            for job_id, newest in gone.items()
        ]
        for start in range(0, len(changes), BATCH):
            self._store().write(changes[start : start + BATCH])

    def _keys_of(self, message: StoredMessage) -> set[tuple[str, str]]:
        """The key of a unique job, and its id; none of a message that no worker would trust."""
        try:
            headers = envelope.decode_headers(message.headers)
            self._broker.verify(message.queue, message.body, headers.signature)
        except Unreadable:
            return set()
        return unique_keys(message.body)

    # -- the rest ----------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return self._broker.driver.queues()

    def _matching(self, pattern: str) -> list[str]:
        names = [n for n in self._names() if is_job_queue(n) and fnmatchcase(n, pattern)]
        if not names:
            raise self._not_found(pattern)
        return names

    def _not_found(self, name: str) -> UnknownQueue:
        known = sorted(queue for queue in self._names() if is_job_queue(queue))
        if any(queue.startswith(f"{name}.") for queue in known):
            return UnknownQueue(f"there is no queue of jobs '{name}'; those of the category are '{name}.*'")
        near = get_close_matches(name, known, n=1) if not set(name) & set("*?[") else []
        hint = f"did you mean '{near[0]}'?" if near else "'callboard queues list' shows them"
        return UnknownQueue(f"there is no queue of jobs '{name}'; {hint}")

    def _control(self) -> tuple[frozenset[str] | None, list[Heartbeat]]:
        if self._broker.store is None:
            return None, []
        try:
            control = self._broker.store.control()
            return control.paused if control is not None else frozenset(), self._broker.store.workers()
        except StoreUnavailable:
            return None, []

    def _store(self) -> Store:
        if self._broker.store is None:
            raise StoreUnavailable("this broker has no store, so nothing can be asked of its workers")
        return self._broker.store


def _place(status: QueueStatus) -> tuple[int, str, int, str]:
    kind = ("jobs", "dead", "quarantine").index(status.kind)
    return (kind, status.category, int(queues.priority_of(status.name)), status.name)


def _identity(message: StoredMessage) -> tuple[str, int] | None:
    """A waiting job's id, and the order of the record that says it is queued."""
    try:
        decoded = envelope.decode(message.body, max_bytes=RECEIVE_LIMIT)
        hop = envelope.decode_headers(message.headers).hop
    except Unreadable:
        return None
    return decoded.message_id, order(hop, State.QUEUED)
