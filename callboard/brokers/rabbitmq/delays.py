"""The ladder: delays that RabbitMQ keeps, whatever their number and length.

Twenty-eight queues `callboard.delay.NN`, one for each bit of a delay counted in tenths of a second. In
queue NN a message waits 2**NN tenths, then it falls, dead-lettered, to the exchange of the level below.
The routing key is the delay in binary, highest bit first, a dot between the bits, then the destination::

    3.2 s for email.high:  0.0. ... .1.0.0.0.0.0.email%2Ehigh

An exchange looks at its own bit: set, the message waits in its queue; not set, it falls through to the next
exchange at once. A message enters at its highest set bit. Below the last level the exchange
`callboard.delay.delivery` routes by the last word of the key. All messages of a queue wait equally long, so
that none is ever held up behind another.

A message whose destination has been deleted meanwhile goes to `callboard.delay.unroutable`, out of which
every intake forwards what it finds, creating the queue again. Without that alternate exchange one such message
would stop the last level for all.

A message that has been dead-lettered must be published again without its `x-death` headers, or RabbitMQ takes
the second pass through the ladder for a cycle and drops the message silently.
"""

from __future__ import annotations

import math
from functools import partial
from urllib.parse import unquote

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from callboard.brokers.rabbitmq.outage import ACCESS_REFUSED, NOT_FOUND
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.topology import QUORUM, QueueMismatch, declare_queue, named

LEVELS = 28
UNIT = 0.1  # seconds
LONGEST = (2**LEVELS - 1) * UNIT  # 310 days

_LONGEST_WORD = 255 - 2 * LEVELS  # a routing key has 255 bytes


class Ladder:
    """The names and declarations of one ladder."""

    def __init__(self, namespace: str) -> None:
        self._levels = [named(namespace, f"callboard.delay.{level:02d}") for level in range(LEVELS)]
        self._delivery = named(namespace, "callboard.delay.delivery")
        self.unroutable = named(namespace, "callboard.delay.unroutable")

    def way(self, destination: str, seconds: float) -> tuple[str, str]:
        """The exchange and the routing key by which a message reaches a queue not before `seconds` are over.

        Raises:
            ValueError: No delay, or one beyond `LONGEST`, or a name that is too long for the key.
        """
        units = math.ceil(round(seconds / UNIT, 6))
        if not 0 < units < 2**LEVELS:
            raise ValueError(f"a delay of {seconds:.0f} s is beyond the longest, {LONGEST:.0f} s")
        bits = ".".join(f"{units:0{LEVELS}b}")
        return self._levels[units.bit_length() - 1], f"{bits}.{_word(destination)}"

    def declare(self) -> Script[None]:
        """Create what is missing of the ladder. May be repeated.

        Raises:
            QueueMismatch: Something is missing, and may not be created.
        """
        try:
            yield from self._create()
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            yield from self._find()

    def _find(self) -> Script[None]:
        """For a user who may not create it: it may be there all the same."""
        for name in (self.unroutable, self._delivery, *self._levels):
            try:
                yield partial(Channel.exchange_declare, exchange=name, passive=True)
            except ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                raise QueueMismatch(
                    f"the exchange '{name}', which delays need, doesn't exist in RabbitMQ, and our user may not "
                    "create it: run `callboard queues create` as one who may"
                ) from error

    def _create(self) -> Script[None]:
        yield from self.declare_unroutable()
        yield partial(
            Channel.exchange_declare,
            exchange=self._delivery,
            exchange_type="topic",
            durable=True,
            arguments={"alternate-exchange": self.unroutable},
        )
        below = self._delivery
        for level, name in enumerate(self._levels):
            yield partial(Channel.exchange_declare, exchange=name, exchange_type="topic", durable=True)
            yield from declare_queue(name, _level_arguments(level, below))
            higher = "*." * (LEVELS - 1 - level)
            yield partial(Channel.queue_bind, queue=name, exchange=name, routing_key=f"{higher}1.#")
            yield partial(Channel.exchange_bind, destination=below, source=name, routing_key=f"{higher}0.#")
            below = name

    def declare_unroutable(self) -> Script[None]:
        """Create the place for messages whose destination is gone."""
        yield partial(
            Channel.exchange_declare, exchange=self.unroutable, exchange_type="fanout", durable=True
        )
        yield from declare_queue(self.unroutable, QUORUM)
        yield partial(Channel.queue_bind, queue=self.unroutable, exchange=self.unroutable)

    def bind(self, destination: str) -> Script[None]:
        """Let the ladder end in a queue."""
        # Exactly the bits and one word: `#.high` would also take what is meant for a queue `email.high`.
        key = "*." * LEVELS + _word(destination)
        try:
            yield partial(Channel.queue_bind, queue=destination, exchange=self._delivery, routing_key=key)
        except ChannelClosedByBroker as error:
            # If nobody else has bound it, its messages end among the unroutable, and are forwarded by a worker.
            if error.reply_code != ACCESS_REFUSED:
                raise


def destination_of(routing_key: str) -> str:
    """The queue that a message on the ladder is meant for."""
    return unquote(routing_key.rpartition(".")[2])


def _word(queue: str) -> str:
    """A queue's name as one word of a routing key: no dots, and nothing that a pattern would expand."""
    word = queue.replace("%", "%25").replace(".", "%2E").replace("#", "%23").replace("*", "%2A")
    if len(word.encode()) > _LONGEST_WORD:
        raise ValueError(f"the queue name '{queue[:40]}...' is too long to be delayed")
    return word


def _level_arguments(level: int, below: str) -> dict[str, object]:
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": round(UNIT * 1000) * 2**level,
        "x-dead-letter-exchange": below,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # what at-least-once asks for
    }
