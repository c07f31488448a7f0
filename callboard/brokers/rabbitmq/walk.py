"""A walk: one pass over the messages of a queue, on a connection of its own.

What is kept is published to the queue's tail, what is moved to where it shall be; then the message is acked.
So a crash leaves messages twice and never loses one, and the pass ends at the count that the queue had when it
began. (To hold all messages and look would end at 2,000: quorum queues give no consumer more.)

No more are acked than lets the server hand out that count, until all of it is here and the consumer cancelled:
messages that are on their way when a consumer is cancelled go back into their queue in any order.

Two walks never overlap. Each first declares an exclusive queue named after the one it walks over, which
RabbitMQ grants to one connection and takes away when that is gone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from callboard.brokers.driver import Decide, Outgoing, PutError, StoredMessage, Verdict, WalkReport
from callboard.brokers.rabbitmq.address import Address
from callboard.brokers.rabbitmq.lane import Arrival, Hold, Lane
from callboard.brokers.rabbitmq.link import Link
from callboard.brokers.rabbitmq.outage import RESOURCE_LOCKED
from callboard.brokers.rabbitmq.publisher import Publisher
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.topology import arguments_of, count_messages, declare_queue, named
from callboard.errors import BrokerUnavailable

PREFETCH = 1000
_STEP = 250  # letters that are decided upon before they are published
PATIENCE = 30.0  # seconds to wait for another walk to end, and for a server that is slow
_PUT_DEADLINE = 30.0
_GIVEN_BACK_AT_ONCE = 16


class Walk:
    """One walk over one queue. Use it in a `with`.

    Raises:
        BrokerUnavailable: RabbitMQ is away, or another walk over the queue doesn't end.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        namespace: str,
        name: str,
        queue: str,
        publisher: Publisher,
    ) -> None:
        self._namespace = namespace
        self._queue = queue
        self._publisher = publisher
        self._arrived = threading.Condition()
        self._letters: deque[Arrival] = deque()
        self._interrupted = False
        self._acks_left = 0  # how many letters may be acked before the consumer is cancelled
        self._settled: list[Arrival] = []  # decided upon, and not acked yet
        self._link = Link(addresses, name, down=self._down)
        self._name = named(namespace, queue)
        self._lane: Lane | None = None

    def __enter__(self) -> Walk:
        self._link.start()
        try:
            self._lock()
        except BaseException:
            self._link.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def count(self) -> int:
        """How many messages can be walked over now; 0 if there is no such queue."""
        counted = self._link.ask(count_messages({self._queue: self._name}), PATIENCE)
        return counted.get(self._queue, (0, 0))[0]

    def go(self, decide: Decide, progress: Callable[[int, int], None] | None) -> WalkReport:
        """Make the pass."""
        report = WalkReport()
        total = self.count()
        if total:
            self._consume(total)
        while report.seen < total and (letters := self._take(min(_STEP, total - report.seen))):
            self._decide(letters, decide, report)
            self._ack_some()
            if progress is not None:
                progress(report.seen, total)
        self._end(ack=self._settled)
        return report

    def look(self, limit: int) -> list[StoredMessage]:
        """The first messages, left where they are."""
        wanted = min(limit, self.count(), PREFETCH)
        found: list[StoredMessage] = []
        shown: list[Arrival] = []
        if wanted:
            self._consume(wanted)
        while len(found) < wanted and (letters := self._take(wanted - len(found))):
            found += [self._stored(letter) for letter in letters]
            shown += letters
        self._end(give_back=shown)
        return found

    # -- the walking thread

    def _lock(self) -> None:
        name = named(self._namespace, f"callboard.walk.{self._queue}")
        until = time.monotonic() + PATIENCE
        while not self._link.ask(_take_lock(name), PATIENCE):
            if time.monotonic() > until:
                raise BrokerUnavailable(
                    f"another walk over '{self._queue}' is under way; try again when it has ended"
                )
            time.sleep(0.1)

    def _consume(self, expected: int) -> None:
        prefetch = min(expected, PREFETCH)
        self._acks_left = expected - prefetch
        self._lane = Lane(
            self._link,
            self._name,
            declare=lambda: declare_queue(self._name, arguments_of(self._queue)),
            prefetch=prefetch,
            receive=self._receive,
        )
        self._link.call(self._lane.open)

    def _take(self, limit: int) -> list[Arrival]:
        """The next letters; none if the queue has run dry before its count was reached."""
        until = time.monotonic() + PATIENCE
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._letters or self._interrupted, timeout=1.0)
                self._check()
                if self._letters:
                    return [self._letters.popleft() for _ in range(min(limit, len(self._letters)))]
            if not self.count() and not self._letters:
                return []  # somebody else has taken or purged the rest
            if time.monotonic() > until:
                raise BrokerUnavailable(
                    f"RabbitMQ hands out nothing from '{self._queue}': another worker holds it"
                )

    def _decide(self, letters: list[Arrival], decide: Decide, report: WalkReport) -> None:
        outgoing: list[Outgoing] = []
        for letter in letters:
            message = self._stored(letter)
            decision = decide(message)
            report.seen += 1
            if isinstance(decision, Outgoing):
                report.moved += 1
                outgoing.append(decision)
            elif decision is Verdict.DISCARD:
                report.discarded += 1
            else:
                report.kept += 1
                job_id = letter.properties.message_id
                outgoing.append(Outgoing(self._queue, letter.body, job_id, message.headers))
        try:
            self._publisher.put(outgoing, _PUT_DEADLINE)
        except PutError as error:
            raise BrokerUnavailable(
                f"the walk over '{self._queue}' stopped: {error}; nothing is lost"
            ) from error
        self._settled += letters

    def _ack_some(self) -> None:
        now, self._settled = self._settled[: self._acks_left], self._settled[self._acks_left :]
        self._acks_left -= len(now)
        if now:
            self._link.call(lambda: self._ack(now))
        self._check()

    def _end(self, *, ack: Sequence[Arrival] = (), give_back: Sequence[Arrival] = ()) -> None:
        """Let go of the last letters, and wait until the server has read that."""
        if self._lane is not None:
            ended = threading.Event()
            self._link.call(lambda: self._stop(ack, give_back, ended.set))
            if not ended.wait(PATIENCE):
                self._interrupted = True
        self._check()

    def _stored(self, letter: Arrival) -> StoredMessage:
        return StoredMessage(self._queue, letter.body, letter.properties.headers)

    def _check(self) -> None:
        if self._interrupted:
            reason = self._link.outage or "the connection was lost"
            raise BrokerUnavailable(
                f"the walk over '{self._queue}' was interrupted: {reason}; nothing is lost, walk again"
            )

    # -- the link's thread

    def _down(self) -> None:
        if self._lane is not None:
            self._lane.lose()
        with self._arrived:
            self._interrupted = True
            self._arrived.notify_all()

    def _receive(self, letter: Arrival) -> None:
        with self._arrived:
            self._letters.append(letter)
            self._arrived.notify_all()

    def _ack(self, letters: Sequence[Arrival]) -> None:
        for letter in letters:
            letter.hold.unacked.done(letter.tag)
        for hold in {letter.hold for letter in letters}:
            self._interrupted = self._interrupted or not hold.is_open
            hold.send_acks(last=True)

    def _stop(self, ack: Sequence[Arrival], give_back: Sequence[Arrival], done: Callable[[], None]) -> None:
        assert self._lane is not None
        hold = self._lane.hold
        if hold is None:
            done()  # the connection is gone, and `_down` has said so
            return

        def let_go() -> None:
            self._ack(ack)
            _give_back(hold, [letter.tag for letter in give_back], done)

        self._lane.stop()
        hold.sync(let_go)


def _give_back(hold: Hold, tags: Sequence[int], done: Callable[[], None]) -> None:
    """A few at a time, waiting for the server: what it takes back at once beyond 32, it puts back in any order."""
    for tag in tags[:_GIVEN_BACK_AT_ONCE]:
        hold.give_back(tag)
    rest = tags[_GIVEN_BACK_AT_ONCE:]
    hold.sync((lambda: _give_back(hold, rest, done)) if rest else done)


def _take_lock(name: str) -> Script[bool]:
    """Whether the exclusive queue could be had."""
    try:
        yield partial(Channel.queue_declare, queue=name, exclusive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != RESOURCE_LOCKED:
            raise
        return False
    return True
