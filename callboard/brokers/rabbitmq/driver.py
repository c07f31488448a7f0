"""The RabbitMQ driver: the parts put together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

from pika.channel import Channel

from callboard.brokers.driver import (
    Decide,
    Driver,
    IntakeOptions,
    Outgoing,
    QueueCounts,
    StoredMessage,
    WalkReport,
)
from callboard.brokers.rabbitmq import address
from callboard.brokers.rabbitmq.delays import Ladder
from callboard.brokers.rabbitmq.intake import RabbitmqIntake
from callboard.brokers.rabbitmq.link import Link
from callboard.brokers.rabbitmq.publisher import Publisher
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.topology import (
    arguments_of,
    count_messages,
    declare_queue,
    named,
    purge_queue,
)
from callboard.brokers.rabbitmq.walk import Walk
from callboard.errors import BrokerUnavailable

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0  # seconds
CREATION_TIMEOUT = 120.0  # seconds; a quorum queue takes a busy cluster a moment


class RabbitmqDriver(Driver):
    """Keeps messages in RabbitMQ. Connects when it is first used.

    Args:
        url: See `callboard.brokers.rabbitmq.address`.
        namespace: What queues and exchanges are prefixed with, for several apps in one vhost.
        connection_name: Who we are, for RabbitMQ's list of connections.

    Raises:
        SettingsError: The URL can't be read.
    """

    name: ClassVar[str] = "rabbitmq"
    networked: ClassVar[bool] = True
    puts_async: ClassVar[bool] = True
    claims_are_leases: ClassVar[bool] = False  # a connection that is cut off loses its claims, its jobs go on

    def __init__(self, url: str, *, namespace: str = "", connection_name: str = "") -> None:
        self._addresses = address.parse(url)
        self._namespace = namespace
        self._name = connection_name or "callboard"
        self._declared: dict[str, None] = {}
        self._publisher = Publisher(self._addresses, namespace, f"{self._name}: publishing")
        self._intakes: list[RabbitmqIntake] = []
        self._lock = threading.Lock()

    def declare(self, queue: str) -> None:
        self._declared[queue] = None

    def create_queues(self) -> list[str]:
        names = sorted(self._declared)
        self._ask(self._create(names), CREATION_TIMEOUT)
        return names

    def _create(self, queues: Sequence[str]) -> Script[None]:
        ladder = Ladder(self._namespace)
        yield from ladder.declare()
        for queue in queues:
            name = named(self._namespace, queue)
            yield from declare_queue(name, arguments_of(queue))
            yield from ladder.bind(name)

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        self._publisher.put(messages, deadline)
        for message in messages:
            self._declared[message.queue] = None

    async def put_async(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        await self._publisher.put_async(messages, deadline)
        for message in messages:
            self._declared[message.queue] = None

    def open_intake(self, options: IntakeOptions) -> RabbitmqIntake:
        for queue in options.queues:
            self.declare(queue)
        intake = RabbitmqIntake(
            self._addresses,
            self._namespace,
            f"{self._name}: worker {options.worker}",
            options,
            self._publisher,
        )
        with self._lock:
            self._intakes = [*(one for one in self._intakes if not one.link.is_over), intake]
        return intake

    def queues(self) -> list[str]:
        """AMQP can't list queues: these are the ones that this process has declared or used."""
        return sorted(self._declared)

    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        """Ready messages and consumers; AMQP tells neither what is claimed nor, per queue, what is delayed."""
        names = {queue: named(self._namespace, queue) for queue in queues}
        found = self._ask(count_messages(names))
        nothing = (0, 0)
        return {
            queue: QueueCounts(ready=ready, claimed=None, delayed=None, consumers=consumers)
            for queue, (ready, consumers) in ((queue, found.get(queue, nothing)) for queue in names)
        }

    def purge(self, queue: str) -> int:
        """What is delayed on the ladder stays, for all queues wait there together."""
        return self._ask(purge_queue(named(self._namespace, queue)))

    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        with self._walk_over(queue) as walk:
            return walk.go(decide, progress)

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """The first messages of a queue, and no more than 1,000."""
        with self._walk_over(queue) as walk:
            return walk.look(limit)

    def _walk_over(self, queue: str) -> Walk:
        return Walk(
            self._addresses, self._namespace, f"{self._name}: walk over {queue}", queue, self._publisher
        )

    def _ask(self, script: Script[T], timeout: float = ANSWER_TIMEOUT) -> T:
        """On a connection that an alarm doesn't silence: those that publish aren't read until it is over."""
        with self._lock:
            claiming = [intake.link for intake in self._intakes]
        for link in claiming:
            if link.outage is None and not link.is_over:
                return link.ask(script, timeout)
        publishing = self._publisher.link
        if publishing.blocked is None:
            return publishing.ask(script, timeout)
        link = Link(self._addresses, f"{self._name}: asking")
        link.start()
        try:
            return link.ask(script, timeout)
        finally:
            link.close()

    def ping(self) -> None:
        link = self._publisher.link
        link.ask(_say_hello(), ANSWER_TIMEOUT)
        if link.blocked:
            raise BrokerUnavailable(link.blocked)

    def close(self) -> None:
        with self._lock:
            intakes, self._intakes = self._intakes, []
        for intake in intakes:
            intake.close()
        self._publisher.close()


def _say_hello() -> Script[None]:
    yield partial(Channel.basic_qos, prefetch_count=1)
