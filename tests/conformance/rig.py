"""A broker with the whole stack, on one of the drivers, its jobs run by one of the workers.

Every test has a category of its own, so that drivers may share a server: what one test leaves behind, another
never sees.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import dramatiq
from dramatiq import Message, Middleware
from prometheus_client import CollectorRegistry

from callboard import dead_letter, envelope, queues
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.driver import Delivery, Driver, Intake, IntakeOptions, Outgoing, PutError
from callboard.dead_letter import DeadLetter
from callboard.envelope import Headers
from callboard.metrics import Metrics
from callboard.queues import Priority, dead_queue, queue_for
from callboard.states import State
from callboard.store import open_store
from callboard.store.base import Record, Store
from callboard.store.control import ControlWatch
from callboard.worker.worker import Worker
from middleware import stack
from tests.patience import until

PATIENCE = 30.0  # seconds that an event may take on a slow machine; none should need them
LULL = 0.2  # seconds in which nothing is expected

_numbers = count(1)


class Crew(ABC):
    """A worker of either kind, at work."""

    @abstractmethod
    def stop(self, *, grace: float = PATIENCE) -> None:
        """Stop it. Running jobs have `grace` seconds to finish."""

    @abstractmethod
    def threads(self) -> Sequence[threading.Thread]:
        """Those that run jobs."""

    @abstractmethod
    def within_reach(self) -> int:
        """How many unstarted jobs lie ready in this process."""

    @abstractmethod
    def unstarted(self) -> list[ClaimedMessage]:
        """What no thread has taken yet of the messages that were received."""


class OwnCrew(Crew):
    """Callboard's own worker."""

    def __init__(self, broker: Broker, threads: int) -> None:
        self._worker = Worker(broker, sorted(broker.queues), threads=threads)
        self._worker.start()

    def stop(self, *, grace: float = PATIENCE) -> None:
        self._worker.stop(grace=grace)

    def threads(self) -> Sequence[threading.Thread]:
        return self._worker._runners

    def within_reach(self) -> int:
        # RabbitMQ sends ahead of being asked.
        sent_ahead = getattr(self._worker._intake, "_waiting", None)
        lying = sum(len(heap) for heap in sent_ahead._heaps.values()) if sent_ahead is not None else 0
        return self._worker.claimed + lying

    def unstarted(self) -> list[ClaimedMessage]:
        return [message for waiting in self._worker._work._waiting for _, _, message in waiting]


class DramatiqCrew(Crew):
    """Dramatiq's own worker, as `dramatiq broker actors` runs it, but with shorter naps."""

    def __init__(self, broker: Broker, threads: int) -> None:
        self._worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=threads)
        self._worker.start()

    def stop(self, *, grace: float = PATIENCE) -> None:
        self._worker.stop(timeout=int(grace * 1000))

    def threads(self) -> Sequence[threading.Thread]:
        return self._worker.workers

    def within_reach(self) -> int:
        return self._worker.work_queue.qsize()

    def unstarted(self) -> list[ClaimedMessage]:
        entries: list[Any] = list(self._worker.work_queue.queue)  # as `callboard.brokers.takeover` makes them
        return [item.message for _, _, item in entries]


WORKERS: dict[str, Callable[[Broker, int], Crew]] = {"callboard": OwnCrew, "dramatiq": DramatiqCrew}


@dataclass
class Start:
    """A run as it began."""

    job_id: str
    attempt: int
    at: float  # by the broker's clock
    body: bytes
    headers: Headers


class Witness(Middleware):
    """Notes every run that begins. The innermost hook: nothing else can keep the job from running."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.skipped: list[str] = []  # ids of the messages that were kept from running

    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self.skipped.append(message.message_id)

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        assert isinstance(message, ClaimedMessage)
        assert message.started_at is not None
        self.starts.append(
            Start(
                message.message_id,
                message.attempt,
                message.started_at,
                message.delivery.body,
                envelope.decode_headers(message.delivery.headers),
            )
        )


@dataclass
class Rig:
    """See the module's head.

    Attributes:
        driver_name: Which driver: 'file', 'rabbitmq' or 'stub'.
        worker_name: Which worker: 'callboard' or 'dramatiq'.
        open_driver: Opens one more driver on the same messages, as another process would.
    """

    driver_name: str
    worker_name: str
    open_driver: Callable[[], Driver]
    broker: Broker
    category: str = field(default_factory=lambda: f"c{next(_numbers)}")
    stack: ExitStack = field(default_factory=ExitStack)
    crews: list[Crew] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)  # that run, or have run, jobs

    def __post_init__(self) -> None:
        self.witness = Witness()
        self.broker.add_middleware(self.witness)
        self._declare = ActorDecorator(self.broker)

    @property
    def store(self) -> Store:
        assert self.broker.store is not None
        return self.broker.store

    @property
    def tells_all(self) -> bool:
        """Whether the driver's counts know claimed and delayed messages."""
        return self.driver_name != "rabbitmq"

    def actor(self, model: Any = None, /, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Declares actors in this test's category."""
        declare: Callable[[Callable[..., Any]], Any] = self._declare(
            model, **{"category": self.category, **options}
        )
        return declare

    def queue(self, priority: Priority = Priority.MEDIUM) -> str:
        return queue_for(self.category, priority)

    def queues(self) -> list[str]:
        return [self.queue(priority) for priority in Priority]

    # -- workers -----------------------------------------------------------------------------------------

    def start(self, threads: int = 2) -> Crew:
        crew = WORKERS[self.worker_name](self.broker, threads)
        self.crews.append(crew)
        self.threads += crew.threads()
        return crew

    def stop(self) -> None:
        self.stop_within(PATIENCE)

    def stop_within(self, grace: float) -> None:
        """Stop the workers; running jobs have so many seconds."""
        while self.crews:
            self.crews.pop().stop(grace=grace)

    # -- messages ----------------------------------------------------------------------------------------

    def put_raw(self, *bodies: bytes, headers: bytes = b"", queue: str | None = None) -> None:
        """Queue bytes past all rules of sending, as a foreign producer can."""
        outgoing = [
            Outgoing(queue or self.queue(), body, f"raw-{n}", headers) for n, body in enumerate(bodies)
        ]
        self.broker.driver.put(outgoing, deadline=PATIENCE)

    def plain(self, **fields: Any) -> bytes:
        """The body of a job of the actor `note`."""
        return json.dumps(
            {
                "queue_name": self.queue(),
                "actor_name": "note",
                "args": [],
                "kwargs": {"text": "plain"},
                "options": {},
                "message_id": f"plain-{next(_numbers)}",
                "message_timestamp": 1,
            }
            | fields
        ).encode()

    def elsewhere(self, budget: int = 100) -> Intake:
        """The hand of another worker, on the four queues."""
        driver = self.open_driver()
        if driver is not self.broker.driver:
            self.stack.callback(driver.close)
        intake = driver.open_intake(
            IntakeOptions(queues=self.queues(), budget=budget, worker=f"elsewhere-{next(_numbers)}")
        )
        self.stack.callback(intake.close)
        return intake

    def ready(self, *names: str) -> int:
        """How many messages can be claimed; of the four queues, if no others are named."""
        return sum(c.ready for c in self.broker.driver.counts(names or self.queues()).values())

    def letters(self, count: int = 1) -> list[DeadLetter]:
        """The dead letters, when there are so many."""
        name = dead_queue(self.category)
        until(lambda: self.ready(name) >= count)
        letters = [dead_letter.decode(stored.body) for stored in self.broker.driver.peek(name)]
        assert len(letters) == count
        return letters

    def quarantined(self, count: int) -> list[tuple[bytes, str]]:
        """What this test has in quarantine, and why, when it is so much."""

        def own() -> list[tuple[bytes, str]]:
            found = [
                (stored.body, envelope.decode_headers(stored.headers).reason)
                for stored in self.broker.driver.peek(queues.QUARANTINE, 1000)
            ]
            return [(body, reason) for body, reason in found if reason.startswith(f"from {self.category}.")]

        found: list[tuple[bytes, str]] = until(lambda: len(own()) >= count and own())
        assert len(found) == count
        return found

    def finish(self, *, delayed: int = 0) -> None:
        """Stop the workers; nothing is left of the jobs but what is said to be delayed."""
        self.stop()
        for name, counts in self.broker.driver.counts(self.queues()).items():
            assert (counts.ready, counts.claimed or 0) == (0, 0), name
        if self.tells_all:
            found = self.broker.driver.counts(self.queues()).values()
            assert sum(counts.delayed or 0 for counts in found) == delayed

    # -- what is known -----------------------------------------------------------------------------------

    def record(self, job: Message[Any] | str) -> Record | None:
        assert self.broker.recorder is not None
        assert self.broker.recorder.flush(PATIENCE)
        return self.store.get(job if isinstance(job, str) else job.message_id)

    def reaches(self, job: Message[Any] | str, state: State) -> Record:
        """The record of a job, when it has come to a state."""

        def there() -> Record | None:
            record = self.record(job)
            return record if record is not None and record.state is state else None

        found: Record = until(there)
        return found

    def starts(self, job: Message[Any]) -> list[Start]:
        return [start for start in self.witness.starts if start.job_id == job.message_id]

    # -- faults ------------------------------------------------------------------------------------------

    def refuse_moves(self) -> Refusal:
        """Have the workers that are started from now on get no move confirmed, until that is over."""
        refusal = Refusal()
        driver = self.broker.driver
        open_intake = driver.open_intake

        def open_refusing(options: IntakeOptions) -> Intake:
            intake = open_intake(options)
            intake.move = partial(refusal.move, intake.move)  # type: ignore[method-assign]
            return intake

        driver.open_intake = open_refusing  # type: ignore[method-assign]
        return refusal


class Refusal:
    """A broker that confirms no move."""

    def __init__(self) -> None:
        self.refused: list[Outgoing] = []
        self.over = False

    def move(
        self, move: Callable[[Delivery, Outgoing], None], delivery: Delivery, outgoing: Outgoing
    ) -> None:
        if self.over:
            move(delivery, outgoing)
        else:
            self.refused.append(outgoing)
            raise PutError("the broker is away", not_queued=[outgoing])


def make_rig(
    driver_name: str,
    worker_name: str,
    open_driver: Callable[[], Driver],
    *,
    store_url: str = "memory:",
    **broker_options: Any,
) -> Rig:
    """A rig that isn't running yet. Close it by `dismantle`."""
    store = open_store(store_url)
    metrics = Metrics(CollectorRegistry())
    broker = Broker(open_driver(), store=store, middleware=stack(store, metrics=metrics), **broker_options)
    broker.control = ControlWatch(store, interval=0.05)
    return Rig(driver_name, worker_name, open_driver, broker)


def dismantle(rig: Rig) -> None:
    """Stop what still runs, and let go of connections and files."""
    rig.stop()
    for thread in rig.threads:  # a job may have outlasted its worker's grace
        thread.join(PATIENCE)
    rig.stack.close()
    rig.broker.close()
