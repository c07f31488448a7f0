"""Claiming: one connection a worker, with a channel for each of its queues.

The life of a delivery: RabbitMQ sends it ahead of being asked, up to the prefetch; the link's thread puts it
with those that wait; `fetch` takes it out. It is let go by an ack, which stands for those before it too if they are
done within two milliseconds, or by a give-back. When its channel closes first, RabbitMQ gives it to somebody
else: if it wasn't fetched yet it is dropped here, and otherwise its ack will be.

The prefetch begins at the queue's share of the budget. What nobody has fetched for a while goes back to the
server, where a free worker finds it, and the prefetch shrinks to what was fetched in that time; it grows again
when `fetch` waits and the prefetch is what keeps it waiting. So short jobs flow, and long ones aren't hoarded. While
nobody fetches at all, even a single message goes back now and then, to whoever is free.

The ladder lets a delayed message out a moment before it is due. It is kept here until then, and counts against the
prefetch meanwhile.

What lands in the ladder's `unroutable` queue, because its destination was deleted while it waited, is
forwarded by every intake on the side.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from callboard.brokers.driver import Delivery, Intake, IntakeOptions, Outgoing, PutError
from callboard.brokers.rabbitmq.address import Address
from callboard.brokers.rabbitmq.batch import Batch
from callboard.brokers.rabbitmq.consumer_timeout import warn_of_long_jobs
from callboard.brokers.rabbitmq.delays import Ladder, destination_of
from callboard.brokers.rabbitmq.lane import Arrival, Hold, Lane
from callboard.brokers.rabbitmq.link import Link
from callboard.brokers.rabbitmq.publisher import Publisher
from callboard.brokers.rabbitmq.stream import Stream
from callboard.brokers.rabbitmq.topology import arguments_of, declare_queue, named
from callboard.brokers.rabbitmq.waiting import Waiting
from callboard.loggers import get_logger
from callboard.queues import priority_of

log = get_logger(__name__)

MOVE_DEADLINE = 5.0
#: Seconds for which an ack waits for those before it.
_GATHER = 0.002
#: Seconds after which a delivery that nobody has fetched goes back.
_STALE = 0.5
_LONGEST_INSISTENCE = 30.0  # seconds; a million deliveries, the limit, then take a year
_LOOK_LOST = 5.0  # seconds; by then it went with a thread that had to start over
_LATE = 0.1  # seconds; a look that comes so late says that the machine is busy, not that nobody fetches
_MOST_REMEMBERED = 10_000  # jobs that went back unstarted
_FORWARDED_AT_ONCE = 20
_FORWARD_PAUSE = 5.0  # seconds, before a delayed job that can't be forwarded is tried again
_LARGEST_PREFETCH = 65_535  # 16 bits

#: Seconds for which the first `fetch` waits until all queues are consumed, to choose among all of them.
_SETTLE = 1.0


class Claim:
    """A delivery's token: the channel that it came through, and its number there."""

    __slots__ = ("arrived", "deliveries", "hold", "job", "let_go", "tag", "untouched")

    def __init__(self, hold: Hold, tag: int, job: tuple[str, str] = ("", ""), deliveries: int = 0) -> None:
        self.arrived = time.monotonic()
        self.hold = hold
        self.tag = tag
        self.job = job  # its queue and its id
        self.deliveries = deliveries  # before this one
        self.untouched = False  # it certainly was never started
        self.let_go = False


class RabbitmqIntake(Intake):
    """One worker's open hand on RabbitMQ."""

    def __init__(
        self,
        addresses: Sequence[Address],
        namespace: str,
        name: str,
        options: IntakeOptions,
        publisher: Publisher,
    ) -> None:
        self._namespace = namespace
        self._publisher = publisher
        self._waiting = Waiting()
        self._arrived = threading.Condition()
        self._is_fetching = False
        self._woken = False
        self._acks: deque[Claim] = deque()
        self._returns: deque[Claim] = deque()
        self._budget = options.budget
        self._longest: tuple[str, float] | None = options.longest
        self._share = share_of(options.budget, len(set(options.queues)))
        self._releases_at = math.inf  # when what is kept until it is due is looked at, by the monotonic clock
        self._looks_until = 0.0  # before then a look for what is stale will come, by the monotonic clock
        self._fetched_at = time.monotonic()  # when `fetch` was last called
        self._insists_at = 0.0  # not before then is the last message given back, too
        self._has_shrunk = False  # some queue has less than its share
        self._kicked = False  # the link's thread is asked to settle now
        self._gathering = False  # it will, in a moment
        self._touched: set[Hold] = set()  # channels with acks to send
        # Jobs that went back from here and were never started: by the number of deliveries that each has seen, if
        # it comes back and nobody else had it.
        self._untouched: dict[tuple[str, str], int] = {}
        self._link = Link(addresses, name, up=self._up, down=self._down)
        queues = sorted(dict.fromkeys(options.queues), key=priority_of)
        self._settled = threading.Event()
        self._lanes = {queue: self._lane_for(queue, options) for queue in queues}
        self._unroutable = self._lane_for_unroutable()
        # All of them: to consume a queue that another worker is just creating can cost the connection.
        self._unsettled = {*queues, self._unroutable.name}
        self._link.start()

    def _lane_for(self, queue: str, options: IntakeOptions) -> Lane:
        name = named(self._namespace, queue)
        return Lane(
            self._link,
            name,
            declare=lambda: declare_queue(name, arguments_of(queue)),
            prefetch=self._share,
            receive=partial(self._receive, queue),
            returned=partial(self._returned, queue),
            paused=queue in options.paused,
            settled=lambda: self._lane_settled(queue),
        )

    def _lane_for_unroutable(self) -> Lane:
        ladder = Ladder(self._namespace)
        return Lane(
            self._link,
            ladder.unroutable,
            declare=ladder.declare_unroutable,
            prefetch=_FORWARDED_AT_ONCE,
            receive=self._forward,
            settled=lambda: self._lane_settled(ladder.unroutable),
        )

    # -- claiming ------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        self._fetched_at = time.monotonic()
        until = self._fetched_at + timeout
        if not self._settled.is_set():
            self._settled.wait(min(timeout, _SETTLE))
            self._settled.set()
        found = self._waiting.take(limit)
        if found or timeout <= 0:
            return found
        with self._arrived:
            # Say so before looking once more: whoever appends looks at it afterwards.
            self._is_fetching = True
            while not found and not self._woken and (left := until - time.monotonic()) > 0:
                found = self._waiting.take(limit)
                if not found:
                    if self._has_shrunk:
                        self._link.call(self._grow)
                    self._arrived.wait(left)
            self._is_fetching = self._woken = False
        return found or self._waiting.take(limit)

    def wake(self) -> None:
        self._settled.set()
        with self._arrived:
            self._woken = True
            self._arrived.notify()

    def holds(self, delivery: Delivery) -> bool:
        claim: Claim = delivery.token
        return not claim.let_go and claim.hold.is_good()

    # -- letting go ----------------------------------------------------------------------------------------

    def ack(self, delivery: Delivery) -> None:
        claim: Claim = delivery.token
        claim.let_go = True
        self._acks.append(claim)
        self._settle_soon()

    def move(self, delivery: Delivery, outgoing: Outgoing) -> None:
        self._publisher.put([outgoing], MOVE_DEADLINE)
        self.ack(delivery)

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            claim: Claim = delivery.token
            claim.let_go = True
            claim.untouched = not delivery.redelivered
            self._returns.append(claim)
        self._settle_soon()

    def flush(self, timeout: float) -> bool:
        if self._link.is_over:
            return True
        applied = threading.Event()
        self._link.call(lambda: self._apply(applied.set))
        return applied.wait(timeout)

    def pause(self, queues: frozenset[str]) -> None:
        self._link.call(lambda: self._pause(queues))

    @property
    def link(self) -> Link:
        """The connection."""
        return self._link

    def close(self) -> None:
        if self._link.is_over:
            return
        gone = threading.Event()
        self._link.call(lambda: self._let_go(gone))
        gone.wait(2.0)  # without an answer, RabbitMQ gives back by itself what a closed connection held
        self._link.close()
        self.wake()

    def _settle_soon(self) -> None:
        if not self._kicked:
            self._kicked = True
            self._link.call(self._settle)

    # -- in the link's thread ------------------------------------------------------------------------------

    def _all_lanes(self) -> list[Lane]:
        return [*self._lanes.values(), self._unroutable]

    def _up(self, stream: Stream) -> None:
        if self._longest is not None:
            warn_of_long_jobs(stream.version, *self._longest)
            self._longest = None  # once is enough
        self._kicked = self._gathering = False
        for lane in self._all_lanes():
            lane.open()

    def _lane_settled(self, queue: str) -> None:
        """When all queues are consumed, and what they had at the start is here, `fetch` may choose."""
        if self._unsettled:
            self._unsettled.discard(queue)
            if not self._unsettled:
                self._sync(self._settled.set)

    def _down(self) -> None:
        for lane in self._all_lanes():
            lane.lose()
        self._touched.clear()
        self._note_lost()

    def _note_lost(self) -> None:
        for delivery in self._waiting.remove_lost():
            self._note_untouched(delivery)

    def _note_untouched(self, delivery: Delivery) -> None:
        """This one goes back and was never started, neither here nor, if it is new, anywhere."""
        if not delivery.redelivered:
            claim: Claim = delivery.token
            self._remember(claim)

    def _remember(self, claim: Claim) -> None:
        self._untouched[claim.job] = claim.deliveries + 1
        if len(self._untouched) > _MOST_REMEMBERED:
            del self._untouched[next(iter(self._untouched))]

    def _returned(self, queue: str, arrival: Arrival) -> None:
        """It came after nothing more was wanted, and goes back."""
        properties = arrival.properties
        if not arrival.redelivered:
            self._remember(Claim(arrival.hold, arrival.tag, (queue, properties.message_id)))

    def _receive(self, queue: str, arrival: Arrival) -> None:
        hold, tag, redelivered, key, properties, body = arrival
        claim = Claim(hold, tag, (queue, properties.message_id), properties.deliveries)
        if redelivered:
            redelivered = self._untouched.pop(claim.job, None) != claim.deliveries
        delivery = Delivery(queue, body, properties.headers, claim, redelivered or properties.again)
        if key != self._lanes[queue].name.encode() and properties.since > time.time() * 1e6:
            self._waiting.keep(delivery, properties.since)
            self._release_later()
        else:
            self._offer([(delivery, properties.since)])

    def _offer(self, deliveries: Iterable[tuple[Delivery, int]]) -> None:
        """Let `fetch` have deliveries, each with the time since when it waits."""
        for delivery, since in deliveries:
            self._waiting.add(delivery, since)
        if time.monotonic() > self._looks_until:
            self._look_later()
        if self._is_fetching:
            with self._arrived:
                self._arrived.notify()

    def _release_later(self) -> None:
        left = self._waiting.next_due
        if left is not None and time.monotonic() + left < self._releases_at:
            self._releases_at = time.monotonic() + max(0.0, left)
            self._link.later(max(0.0, left), self._release)

    def _release(self) -> None:
        """Offer what has become due."""
        if due := self._waiting.take_due():
            self._offer(due)
        if time.monotonic() >= self._releases_at:  # else a later timer than this one is to come
            self._releases_at = math.inf
            self._release_later()

    def _gather(self) -> None:
        self._link.later(_GATHER, self._settle)

    def _settle(self, *, last: bool = False) -> None:
        """Send the acks and give-backs that have come; but acks with a gap before them wait another round."""
        self._kicked = self._gathering = False
        while self._acks:
            claim = self._acks.popleft()
            claim.hold.unacked.done(claim.tag)
            self._touched.add(claim.hold)
        while self._returns:
            claim = self._returns.popleft()
            claim.hold.give_back(claim.tag)
            if claim.untouched:
                self._remember(claim)
        for hold in self._touched:
            hold.send_acks(last=last)
        self._touched = {hold for hold in self._touched if hold.is_open and hold.unacked.has_more}
        if self._touched and not self._gathering:
            self._gathering = True
            self._gather()

    def _apply(self, done: Callable[[], None]) -> None:
        self._settle(last=True)
        self._sync(done)

    def _sync(self, done: Callable[[], None]) -> None:
        """Call `done` when RabbitMQ has read, on every channel, all that was sent, and has answered."""
        left = 1

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for hold in [lane.hold for lane in self._all_lanes() if lane.hold is not None]:
            left += 1
            hold.sync(one_done)
        one_done()

    def _look_later(self) -> None:
        due = time.monotonic() + _STALE
        self._looks_until = due + _LOOK_LOST
        self._link.later(_STALE, lambda: self._look(is_late=time.monotonic() > due + _LATE))

    def _look(self, *, is_late: bool) -> None:
        """Give back what has become stale, and ask for less of its kind."""
        self._note_lost()
        nobody_fetches = not any(lane.hold.fetched for lane in self._lanes.values() if lane.hold is not None)
        may_insist = nobody_fetches and self._may_insist()
        for queue in () if is_late else self._waiting.left_since(time.monotonic() - _STALE):
            lane = self._lanes[queue]
            wanted = max(1, lane.hold.fetched // 2) if lane.hold is not None else self._share
            if wanted < lane.prefetch:
                lane.resize(wanted)
                self._has_shrunk = True
            elif not may_insist:
                continue
            self._give_back_unfetched({queue})
        for lane in self._lanes.values():
            if lane.hold is not None:
                lane.hold.fetched = 0
        self._looks_until = 0.0
        if self._waiting:
            self._look_later()

    def _may_insist(self) -> bool:
        """Whether even the one message of a prefetch of one goes back: all threads are busy with long jobs, and
        another worker may be free. Less and less often, since each time counts as a delivery."""
        now = time.monotonic()
        if now < self._insists_at:
            return False
        quiet = now - self._fetched_at
        self._insists_at = now + min(quiet, _LONGEST_INSISTENCE)
        return True

    def _grow(self) -> None:
        """Somebody waits: ask for more where the prefetch is the reason, as far as the budget goes."""
        held = sum(len(lane.hold.unacked) for lane in self._lanes.values() if lane.hold is not None)
        for lane in self._lanes.values():
            more = min(2 * lane.prefetch, self._share, self._budget - held)
            if lane.prefetch < more and lane.is_full:
                held += more
                lane.resize(more)
        self._has_shrunk = any(lane.prefetch < self._share for lane in self._lanes.values())

    def _pause(self, queues: frozenset[str]) -> None:
        for queue, lane in self._lanes.items():
            lane.pause(queue in queues)
        self._give_back_unfetched(queues)

    def _give_back_unfetched(self, queues: Collection[str]) -> None:
        for delivery in self._waiting.remove(queues):
            claim: Claim = delivery.token
            claim.hold.give_back(claim.tag)
            self._note_untouched(delivery)

    def _let_go(self, gone: threading.Event) -> None:
        for lane in self._all_lanes():
            lane.stop()
        self._give_back_unfetched(self._lanes)
        self._apply(gone.set)

    # -- the unroutable

    def _forward(self, arrival: Arrival) -> None:
        destination = destination_of(arrival.routing_key.decode())
        queue = destination.removeprefix(named(self._namespace, "")) if self._namespace else destination
        job_id = arrival.properties.message_id
        log.warning("rabbitmq_delayed_job_found_no_queue", queue=queue, job_id=job_id)
        due = arrival.properties.since / 1e6
        outgoing = Outgoing(
            queue, arrival.body, job_id, arrival.properties.headers, due if due > time.time() else None
        )
        claim = Claim(arrival.hold, arrival.tag)
        self._publisher.restore(queue)
        try:
            self._publisher.submit([outgoing], lambda batch: self._forwarded(batch, claim))
        except PutError:  # closed: the whole process is about to end
            self._returns.append(claim)

    def _forwarded(self, batch: Batch, claim: Claim) -> None:
        """Called in the publisher's thread."""
        if batch.is_safe:
            self._acks.append(claim)
            self._settle_soon()
        else:
            log.error("rabbitmq_delayed_job_stays", reason=batch.problem)
            self._link.call(lambda: self._link.later(_FORWARD_PAUSE, lambda: claim.hold.give_back(claim.tag)))


def share_of(budget: int, queues: int) -> int:
    """The prefetch of each queue, so that all together stay within a worker's budget; at least one each."""
    return min(_LARGEST_PREFETCH, max(1, budget // max(1, queues)))
