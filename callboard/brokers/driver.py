"""What a driver does: keep messages, and hand them out. The rules are the broker's (`brokers/base.py`).

A driver knows bytes, queues, times and claims, and nothing of actors. `put` returns when the messages
are safe; an `Intake` is one worker's open hand: it claims messages from several queues, and lets go of
each by `ack`, `move` or `give_back`. What is claimed and not let go comes back to its queue when the
worker is gone. All times are seconds since the epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import msgspec

from callboard.errors import CallboardError


class Outgoing(msgspec.Struct, gc=False):
    """A message on its way into a queue."""

    queue: str
    body: bytes
    job_id: str
    headers: bytes = b""  # the encoded `Headers`, or nothing when they are all at their defaults
    due: float | None = None  # None: at once


class Delivery(msgspec.Struct, eq=False):
    """A message that an intake has claimed. `token` is the driver's own hold on it."""

    queue: str
    body: bytes
    headers: bytes
    token: Any
    redelivered: bool = False  # it may have been started before, by a worker that is gone


@dataclass(slots=True)
class QueueCounts:
    """How many messages a queue has: to be claimed now, held by workers, and not yet due.

    `claimed` and `delayed` are None where the driver can't tell (RabbitMQ tells nobody what others have claimed,
    and keeps delays of all queues together).
    `consumers` counts intakes open on the queue now, as far as the driver can see.
    `oldest` is for how many seconds the first of those to be claimed has been so, 0 if there is none; None where
    the driver can't tell cheaply.
    """

    ready: int = 0
    claimed: int | None = 0
    delayed: int | None = 0
    consumers: int = 0
    oldest: float | None = field(default=None, compare=False)


@dataclass(slots=True)
class Location:
    """Where the broker has a job. Only some drivers can look one up."""

    queue: str
    claimed_by: str | None = None
    due: float | None = None


@dataclass(slots=True)
class StoredMessage:
    """A message that a walk looks at."""

    queue: str
    body: bytes
    headers: bytes


class Verdict(Enum):
    """What a walk does with a message that it doesn't move."""

    KEEP = "keep"
    DISCARD = "discard"


@dataclass(slots=True)
class WalkReport:
    """What a walk did."""

    seen: int = 0
    kept: int = 0
    moved: int = 0
    discarded: int = 0


class PutError(CallboardError):
    """Some messages of a `put` or `move` weren't confirmed: those in `not_queued` certainly aren't queued,
    those in `unknown` may be. All others of the same call are safe."""

    def __init__(
        self, message: str, *, not_queued: Collection[Outgoing] = (), unknown: Collection[Outgoing] = ()
    ) -> None:
        super().__init__(message)
        self.not_queued = list(not_queued)
        self.unknown = list(unknown)


@dataclass(slots=True)
class IntakeOptions:
    """How an intake claims.

    `budget` is the most that it may hold unacked over all its queues. `worker` is a name, unique for
    ever, that says who has a claim. Of every eight messages that the driver can choose freely, one is
    the oldest that waits in any of the queues; the others are taken by priority. `longest` is the actor
    whose jobs may run longest, and the seconds that they may.
    """

    queues: Sequence[str]
    budget: int
    worker: str
    paused: frozenset[str] = field(default_factory=frozenset)
    longest: tuple[str, float] = ("", 0.0)


class Intake(ABC):
    """One worker's open hand. `fetch` belongs to one thread; all else may be called from any."""

    @abstractmethod
    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Claim up to `limit` messages, waiting up to `timeout` seconds for the first.

        The empty list means that nothing came, or that `wake` was called. Messages come in the order of
        their queues' priority, then of age. Reconnects by itself; never raises because a server is away
        (it then waits out the timeout, and logs once per outage).
        """

    @abstractmethod
    def wake(self) -> None:
        """Let a waiting `fetch` return now."""

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The message is done with. Returns at once; acks are gathered and applied within milliseconds.

        An ack whose claim is gone (its channel closed, its claim rescued) is dropped, never applied to
        another message.
        """

    @abstractmethod
    def move(self, delivery: Delivery, outgoing: Outgoing) -> None:
        """Put a message and ack another: in this order, or in one transaction. Returns when both are safe
        (the ack may still be on its way where the put is confirmed).

        Raises:
            PutError: The put failed, so nothing was acked, and the claim is held as before.
        """

    @abstractmethod
    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put unstarted messages back where they were: ready for others at once, and not `redelivered`
        where the driver can tell."""

    @abstractmethod
    def holds(self, delivery: Delivery) -> bool:
        """Whether the claim is still ours, so that the job may be started."""

    @abstractmethod
    def pause(self, queues: frozenset[str]) -> None:
        """From now on claim nothing from these queues; replaces the set given before."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Wait until the acks given so far are applied; False if that took longer than `timeout` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Apply the acks, give back what is still claimed, and let go."""


Decide = Callable[[StoredMessage], "Outgoing | Verdict"]


class Driver(ABC):
    """A way to keep messages."""

    name: ClassVar[str]
    #: Whether a claim ends only when its worker is certainly gone, so that it serves as the job's lease.
    claims_are_leases: ClassVar[bool] = False
    #: Whether messages live on a server that other hosts can reach.
    networked: ClassVar[bool] = False
    #: Whether `put_async` is there.
    puts_async: ClassVar[bool] = False

    @abstractmethod
    def declare(self, queue: str) -> None:
        """Remember a queue, to be created when it is first used. Does no I/O."""

    def create_queues(self) -> list[str]:
        """Create the declared queues, and what delays need, ahead of their first use; returns their names.

        For users of the broker who may send and not create. None where queues need no creating.

        Raises:
            BrokerUnavailable
            CallboardError: The broker doesn't permit it, or a queue exists with other arguments.
        """
        return []

    @abstractmethod
    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        """Queue messages; all are safe when this returns. `deadline` is in seconds from now, and bounds
        connecting and confirming. Queues that don't exist are created.

        Raises:
            PutError: saying which are not queued, and of which it isn't known.
        """

    async def put_async(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        """`put`, awaited on an event loop without a thread. If it is cancelled, what wasn't written yet isn't
        queued, and the rest may be.

        Raises:
            PutError
        """
        raise NotImplementedError

    @abstractmethod
    def open_intake(self, options: IntakeOptions) -> Intake:
        """Open a hand. Does not fail because a server is away."""

    @abstractmethod
    def queues(self) -> list[str]:
        """The queues that are declared or exist, dead letters and quarantine included, delay queues not.

        Raises:
            BrokerUnavailable
        """

    @abstractmethod
    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        """How many messages each queue has. A queue that doesn't exist counts as empty.

        Raises:
            BrokerUnavailable
        """

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Drop what can be claimed from a queue now, and where possible what is not yet due; returns how
        many messages went. Claimed ones stay.

        Raises:
            BrokerUnavailable
        """

    @abstractmethod
    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        """One pass over the messages that a queue has now. Each is shown once to `decide`: kept, discarded,
        or moved by the `Outgoing` that is returned, which is confirmed before the message goes.

        Two walks over one queue never overlap. A crash leaves messages twice, never not at all.
        `progress` is called now and then with (seen, total); by then, what was decided about those that were
        seen is done.

        Raises:
            BrokerUnavailable
        """

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """The first messages of a queue, left where they are."""
        found: list[StoredMessage] = []

        def look(message: StoredMessage) -> Verdict:
            if len(found) < limit:
                found.append(message)
            return Verdict.KEEP

        self.walk(queue, look)
        return found

    def locate(self, job_id: str) -> Location | None:
        """Where a job is, for drivers that can look it up; others answer None."""
        del job_id
        return None

    def bury(self, worker: str) -> None:
        """Let others have at once what a worker held whose process has just ended, on this host.

        Does nothing where the driver notices that by itself within moments.

        Args:
            worker: What its intakes' name begins with.

        Raises:
            BrokerUnavailable: It will be noticed later.
        """
        del worker

    def ping(self) -> None:
        """Check that messages can be put and claimed.

        Raises:
            BrokerUnavailable: with one sentence that says what is wrong and what to do.
        """
        self.queues()

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and files. May be called twice."""
