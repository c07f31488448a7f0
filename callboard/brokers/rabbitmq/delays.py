"""The ladder: delays that RabbitMQ keeps, whatever their number and length.

Twenty-eight queues `callboard.delay.NN`, one for each bit of a delay counted in tenths of a second. In
queue NN a message waits 2**NN tenths, then it falls, dead-lettered, to the topic exchange
`callboard.delay.NN.due`. The routing key is the destination, then the delay in binary, lowest bit first, up to
its highest bit that is set::

    3.3 s for email.high:  email%2Ehigh.1.0.0.0.0.1

A message enters at its highest bit, through the exchange of the same name as that queue. Each `due` exchange
looks at the bits below its own: by the highest of them that is set the message goes on to that queue; when none
is, to `callboard.delay.delivery`, which routes by the destination. All messages of a queue wait equally long, so
that none is ever held up behind another.

A topic exchange takes some microseconds for each word of a key. So the key of a near job is short, a
message passes one such exchange a fall (and not one a bit), and it enters through one that looks at no key.

A message whose destination has been deleted meanwhile goes to `callboard.delay.unroutable`, out of which
every intake forwards what it finds, creating the queue again. Without that alternate exchange one such message
would stop the last level for all.

A message that has been dead-lettered must be published again without its `x-death` headers, or RabbitMQ takes
the second pass through the ladder for a cycle and drops the message silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from callboard.brokers.rabbitmq.outage import ACCESS_REFUSED, NOT_FOUND
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.topology import QUORUM, QueueMismatch, declare_queue, named

LEVELS = 28
UNIT = 0.1  # seconds
LONGEST = (2**LEVELS - 1) * UNIT  # 310 days
#: Seconds before it is due at which a message is let out, for the worker that claims it to hold it meanwhile: a fall
#: takes RabbitMQ some 0.2 ms for each message, so that of many that are due together the last would be late.
LEAD = 0.1

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
        lowest_first = f"{units:b}"[::-1]
        return self._levels[units.bit_length() - 1], f"{_word(destination)}.{'.'.join(lowest_first)}"

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
        for name in (self.unroutable, self._delivery, *self._levels, *map(_due, self._levels[1:])):
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
        for level, name in enumerate(self._levels):
            after = _due(name) if level else self._delivery
            if level:
                yield partial(Channel.exchange_declare, exchange=after, exchange_type="topic", durable=True)
            yield from declare_queue(name, _level_arguments(level, after))
            yield partial(Channel.exchange_declare, exchange=name, exchange_type="fanout", durable=True)
            yield partial(Channel.queue_bind, queue=name, exchange=name)
            if level:
                nothing_left = "*." + "0." * level + "#"
                yield partial(
                    Channel.exchange_bind, destination=self._delivery, source=after, routing_key=nothing_left
                )
                # Most of the ladder is these bindings: one answer for all is enough.
                yield partial(_bind, exchange=after, queues=self._ways_down(level))

    def _ways_down(self, level: int) -> list[tuple[str, str]]:
        """The pattern and the queue for each bit below a level: it is set, and those between aren't."""
        return [
            ("*." + "*." * bit + "1." + "0." * (level - 1 - bit) + "#", self._levels[bit])
            for bit in range(level)
        ]

    def declare_unroutable(self) -> Script[None]:
        """Create the place for messages whose destination is gone."""
        yield partial(
            Channel.exchange_declare, exchange=self.unroutable, exchange_type="fanout", durable=True
        )
        yield from declare_queue(self.unroutable, QUORUM)
        yield partial(Channel.queue_bind, queue=self.unroutable, exchange=self.unroutable)

    def bind(self, destination: str) -> Script[None]:
        """Let the ladder end in a queue."""
        key = f"{_word(destination)}.#"
        try:
            yield partial(Channel.queue_bind, queue=destination, exchange=self._delivery, routing_key=key)
        except ChannelClosedByBroker as error:
            # If nobody else has bound it, its messages end among the unroutable, and are forwarded by a worker.
            if error.reply_code != ACCESS_REFUSED:
                raise


def destination_of(routing_key: str) -> str:
    """The queue that a message on the ladder is meant for."""
    return unquote(routing_key.partition(".")[0])


def _word(queue: str) -> str:
    """A queue's name as one word of a routing key: no dots, and nothing that a pattern would expand."""
    word = queue.replace("%", "%25").replace(".", "%2E").replace("#", "%23").replace("*", "%2A")
    if len(word.encode()) > _LONGEST_WORD:
        raise ValueError(f"the queue name '{queue[:40]}...' is too long to be delayed")
    return word


def _due(level: str) -> str:
    """The exchange to which a level's messages fall."""
    return f"{level}.due"


def _bind(
    channel: Channel, *, exchange: str, queues: list[tuple[str, str]], callback: Callable[[Any], None]
) -> None:
    """Bind queues by patterns. The answer to the last is the answer to all: a refusal closes the channel."""
    *others, (last_pattern, last_queue) = queues
    for pattern, queue in others:
        channel.queue_bind(queue=queue, exchange=exchange, routing_key=pattern)
    channel.queue_bind(queue=last_queue, exchange=exchange, routing_key=last_pattern, callback=callback)


def _level_arguments(level: int, after: str) -> dict[str, object]:
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": round(UNIT * 1000) * 2**level,
        "x-dead-letter-exchange": after,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # what at-least-once asks for
    }
