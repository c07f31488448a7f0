"""One queue of an intake: a channel of its own, on which its messages come and its acks go.

A channel of its own, because RabbitMQ closes a whole channel over one request (a job that held its message
too long, a queue that is gone), and a neighbour's claims mustn't go with it.

Its life: declare the queue, open a channel, set the prefetch, consume. Every time that a channel opens is a
new `Hold`, and claims belong to the hold that they came through: an ack for an earlier one is dropped, since the
same number means another message by now. Pausing cancels the consumer and keeps the channel, so that what is
claimed can still be acked.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

from callboard.brokers.rabbitmq import frames
from callboard.brokers.rabbitmq.acks import Unacked
from callboard.brokers.rabbitmq.consumer_timeout import consumer_arguments
from callboard.brokers.rabbitmq.frames import Properties, properties_of
from callboard.brokers.rabbitmq.link import Link
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.stream import Stream
from callboard.brokers.rabbitmq.topology import AFTER_A_DELETION
from callboard.loggers import get_logger

log = get_logger(__name__)

_ON_ITS_WAY = 0.01  # seconds that an ack takes, and what it makes room for
_LONGEST_PAUSE = 10.0
_REFUSED_PAUSE = 30.0  # when the queue exists with other arguments


class Hold:
    """A channel while it is open, and what is claimed through it."""

    __slots__ = (
        "_acked",
        "_acked_at",
        "_syncing",
        "channel",
        "fetched",
        "is_open",
        "last_tag",
        "prefetch",
        "stream",
        "unacked",
    )

    def __init__(self, channel: Any, stream: Stream) -> None:
        self.channel: Channel = channel
        self.stream = stream
        self.is_open = True
        self.unacked = Unacked()
        self.last_tag = 0
        self.prefetch = 1  # of the next consumer
        self.fetched = 0  # how many of its deliveries were fetched since somebody set this to 0
        self._acked, self._acked_at = 0, 0.0
        self._syncing: deque[Callable[[], None]] = deque()

    def is_good(self) -> bool:
        """Whether its claims are ours, as far as anyone can know: open, and heard of within the heartbeat.

        On a half-open connection the server has long given the messages to others.
        """
        silence = self.stream.heartbeat
        return self.is_open and (not silence or time.monotonic() - self.stream.heard < silence)

    def send_acks(self, *, last: bool) -> None:
        """Send a round of acks; the last one leaves none over."""
        if not self.is_open or not self.channel.is_open:
            return
        before = len(self.unacked)
        acks = self.unacked.acks(last=last)
        if acks:
            self._acked = self.just_acked + before - len(self.unacked)
            self._acked_at = time.monotonic()
            number = self.channel.channel_number
            self.stream.write(b"".join(frames.ack(number, tag, multiple=multiple) for tag, multiple in acks))

    @property
    def just_acked(self) -> int:
        """How many acks may not have reached the server yet."""
        return self._acked if time.monotonic() - self._acked_at < _ON_ITS_WAY else 0

    def sync(self, done: Callable[[], None]) -> None:
        """Call `done` when RabbitMQ has read all that was sent on this channel, or when the channel is gone."""
        if not self.is_open or not self.channel.is_open:
            done()
            return
        self._syncing.append(done)
        # Any request with an answer would do. This one changes nothing, not even for a consumer to come.
        self.channel.basic_qos(
            prefetch_count=self.prefetch, callback=lambda _: self._syncing and self._syncing.popleft()()
        )

    def end(self) -> None:
        """The channel is gone."""
        self.is_open = False
        while self._syncing:
            self._syncing.popleft()()

    def give_back(self, tag: int) -> None:
        if self.is_open and self.channel.is_open and self.unacked.returned(tag):
            self.stream.write(frames.give_back(self.channel.channel_number, tag))


class Arrival(NamedTuple):
    """A message that was delivered."""

    hold: Hold
    tag: int
    redelivered: bool
    routing_key: bytes
    properties: Properties
    body: bytes


Receive = Callable[[Arrival], None]


class Lane:
    """One queue that is consumed, through reconnects. All of it runs in the link's thread.

    Args:
        link: The connection.
        name: The queue, as RabbitMQ knows it.
        declare: A script that makes sure that the queue is there.
        prefetch: How many messages may be unacked.
        receive: Called with each delivery.
        returned: Called with each that comes when nothing is wanted, and goes back.
        settled: Called when the lane has come to rest: it consumes, or is paused, or its queue can't be had.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        declare: Callable[[], Script[None]],
        prefetch: int,
        receive: Receive,
        returned: Receive = lambda _: None,
        paused: bool = False,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.hold: Hold | None = None
        self.prefetch = prefetch
        self.paused = paused
        self._link = link
        self._declare = declare
        self._receive = receive
        self._returned = returned
        self._settled = settled
        self._busy = False  # a request of this lane is on its way
        self._channel: Any = None  # open, or opening
        self._consumer: str | None = None
        self._granted = 0  # the prefetch that the consumer was made with
        self._first_tag = 0  # the first that this consumer can deliver
        self._failures = 0
        self._stopped = False
        self._opening = 0  # numbers the attempts to open, so that a late answer to an earlier one is ignored

    def open(self) -> None:
        """Begin, on a connection that has just come up."""
        self._busy = True
        self._opening += 1
        opening = self._opening
        self._link.perform(self._declare(), lambda _, error: self._declared(opening, error))

    def lose(self) -> None:
        """The connection is gone."""
        self._drop_hold()
        self._channel = None
        self._busy = False
        self._opening += 1

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._tend()

    def resize(self, prefetch: int) -> None:
        """Change how many messages may be unacked, by consuming anew: RabbitMQ can't change a consumer's window.

        What is unacked already doesn't count against the new one.
        """
        self.prefetch = prefetch
        self._tend()

    @property
    def is_full(self) -> bool:
        """Whether the prefetch is what keeps messages from coming."""
        if self.hold is None or self._busy or not self._consumer:
            return False
        return self.hold.unacked.count_from(self._first_tag) + self.hold.just_acked >= self._granted

    def stop(self) -> None:
        """Consume no more; the channel stays for the acks."""
        self._stopped = True
        self._tend()

    # -- opening

    def _declared(self, opening: int, error: Exception | None) -> None:
        if opening != self._opening:
            return
        if isinstance(error, AMQPError):
            self._try_later(error)
        elif error is not None:
            log.error("rabbitmq_queue_refused", queue=self.name, reason=str(error))
            self._settled()
            self._link.later(_REFUSED_PAUSE, lambda: self._try_again(opening))
        elif self._channel is not None and self._channel.is_open:
            self._busy = False  # the queue was deleted and is there again; the channel never went
            self._tend()
        else:
            self._open_channel()

    def _open_channel(self) -> None:
        stream = self._link.stream
        if stream is None:
            return  # `open` comes again with the next connection
        self._channel = stream.channel(on_open_callback=self._opened)
        self._channel.add_on_close_callback(self._closed)

    def _opened(self, channel: Channel) -> None:
        stream = self._link.stream
        if stream is None or channel is not self._channel:
            return
        self.hold = Hold(channel, stream)
        channel.add_on_cancel_callback(lambda _: self._cancelled_by_server(channel))
        self._busy = False
        self._tend()

    def _closed(self, channel: Channel, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._drop_hold()
        self._channel = None
        if self._link.stream is not None:
            self._link.stream.on_delivery.pop(channel.channel_number, None)
        if self._link.stream is not None and self._link.stream.is_open:
            self._try_later(reason)

    def _drop_hold(self) -> None:
        self._consumer = None
        if self.hold is not None:
            hold, self.hold = self.hold, None
            hold.end()

    def _try_later(self, reason: Exception) -> None:
        if self._stopped:
            return
        self._failures += 1
        log.warning("rabbitmq_queue_interrupted", queue=self.name, reason=str(reason))
        longest = min(_LONGEST_PAUSE, 0.05 * 2.0 ** min(self._failures, 12))
        pause = random.uniform(longest / 2, longest)  # noqa: S311  no secret
        opening = self._opening
        self._link.later(pause, lambda: self._try_again(opening))

    def _try_again(self, opening: int) -> None:
        if opening == self._opening and self._link.stream is not None:
            self.open()

    def _cancelled_by_server(self, channel: Channel) -> None:
        if channel is self._channel and not self._stopped:
            log.warning("rabbitmq_queue_was_deleted", queue=self.name)
            self._consumer = None
            self._busy = True
            opening = self._opening
            self._link.later(AFTER_A_DELETION, lambda: self._try_again(opening))

    # -- consuming

    def _tend(self) -> None:
        """Bring the consumer to what is wanted: one step, and again when that is answered."""
        if self._busy or self.hold is None or not self.hold.channel.is_open:
            return
        wanted = not self.paused and not self._stopped
        if self._consumer and (not wanted or self._granted != self.prefetch):
            self._busy = True
            self.hold.channel.basic_cancel(self._consumer, callback=lambda _: self._went(self._was_cancelled))
        elif wanted and not self._consumer:
            self._busy = True
            self._granted = self.hold.prefetch = self.prefetch
            self.hold.channel.basic_qos(
                prefetch_count=self.prefetch, callback=lambda _: self._went(self._consume)
            )
        else:
            self._settled()

    def _went(self, step: Callable[[], None]) -> None:
        self._busy = False
        if self.hold is not None and self.hold.channel.is_open:
            step()

    def _was_cancelled(self) -> None:
        self._consumer = None
        self._tend()

    def _consume(self) -> None:
        assert self.hold is not None
        hold = self.hold
        self._busy = True
        hold.stream.on_delivery[hold.channel.channel_number] = partial(self._delivered, hold)
        self._consumer = hold.channel.basic_consume(
            self.name,
            partial(self._delivered_by_pika, hold),
            arguments=consumer_arguments(hold.stream.version),
            callback=lambda _: self._went(self._is_consuming),
        )

    def _delivered_by_pika(
        self, hold: Hold, _: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        """A message of several frames."""
        key = method.routing_key.encode()
        self._delivered(hold, method.delivery_tag, method.redelivered, key, properties_of(properties), body)

    def _delivered(
        self, hold: Hold, tag: int, redelivered: bool, key: bytes, properties: Properties, body: bytes
    ) -> None:
        hold.unacked.delivered(tag)
        hold.last_tag = tag
        arrival = Arrival(hold, tag, redelivered, key, properties, body)
        if self.paused or self._stopped:
            hold.give_back(tag)  # it was on its way when the consumer was cancelled
            self._returned(arrival)
        else:
            self._receive(arrival)

    def _is_consuming(self) -> None:
        self._failures = 0
        self._tend()
