"""Publishing: one connection a process, which all threads share.

The life of a message: `submit` hands a batch to the link's thread and wakes it, once for however many
come meanwhile. There a message is written when there is room in the window and its queue is declared; RabbitMQ
confirms it, returns it (its queue is gone: declare it, write again), or refuses it (write again a little later).
When a connection is lost, what was written and not confirmed is written again with the same id, for nobody
knows what became of it: a job may then be there twice, and is never lost. The sender waits until all of its
messages are settled or its deadline is over; then what was never written is "not queued", and what was
written is "unknown".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

from callboard import forks
from callboard.brokers.driver import Outgoing, PutError
from callboard.brokers.rabbitmq import frames
from callboard.brokers.rabbitmq.address import Address
from callboard.brokers.rabbitmq.batch import Batch, Entry
from callboard.brokers.rabbitmq.delays import LEAD, UNIT, Ladder
from callboard.brokers.rabbitmq.link import Link
from callboard.brokers.rabbitmq.script import Script
from callboard.brokers.rabbitmq.stream import Stream
from callboard.brokers.rabbitmq.topology import AFTER_A_DELETION, arguments_of, declare_queue, named
from callboard.loggers import get_logger

log = get_logger(__name__)

#: How many messages may be written and not confirmed.
WINDOW = 1000
_WINDOW_BYTES = 16 * 1024 * 1024
#: How many of one batch are written before the next batch has its turn.
_TURN = 100
_LEAST_PAUSE = 0.02  # seconds, before a refused message is written again
_MOST_RETURNS = 5
_RESTORE_PAUSE = 10.0  # seconds between two restorations of a queue's binding


class Publisher:
    """One connection that publishes, opened at the first message and kept.

    Args:
        addresses: Where RabbitMQ is.
        namespace: What queues and exchanges are prefixed with.
        name: Who we are, for RabbitMQ's list of connections; the host and the process are put behind it.
    """

    def __init__(self, addresses: Sequence[Address], namespace: str, name: str) -> None:
        self._addresses = addresses
        self._namespace = namespace
        self._name = name
        self._ladder = Ladder(namespace)
        self._begin()
        forks.follow(self)

    def forked(self) -> None:
        """The connection is the parent's, and whoever waited for it isn't here."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # between marking as written and reading what was
        self._link: Link | None = None
        self._closed = False
        self._kicked = False
        self._submitted: deque[Batch] = deque()
        self._forget_channel()
        self._declared: set[str] = set()
        self._bound: set[str] = set()
        self._has_ladder = False
        self._interruptions = 0  # since a message was confirmed
        self._undeclared: dict[tuple[str, bool], list[Entry]] = {}
        self._to_declare: list[tuple[str, bool]] = []
        self._restored: dict[str, float] = {}  # queue -> when, by the monotonic clock

    def _forget_channel(self) -> None:
        self._channel: Channel | None = None  # open, or opening
        self._is_ready = False
        self._frame_max = 0
        self._methods: dict[str, bytes] = {}
        self._in_flight: dict[int, Entry] = {}
        self._bytes_in_flight = 0
        self._last_tag = 0
        self._lowest_tag = 1

    # -- from any thread -----------------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        """The connection, opened now if it wasn't."""
        link = self._link
        if link is None:
            with self._lock:
                if self._link is None:
                    self._link = Link(
                        self._addresses,
                        f"{self._name} {socket.gethostname()}:{os.getpid()}",
                        up=self._up,
                        down=self._down,
                        freed=self._pump,
                        turned_away=self._turned_away,
                        longest_pause=1.0,
                    )
                    self._link.start()
                link = self._link
        return link

    def put(self, messages: Sequence[Outgoing], deadline: float) -> None:
        """Publish, and wait until RabbitMQ has confirmed all, for at most `deadline` seconds.

        Raises:
            PutError
        """
        if not messages:
            return
        batch = self.submit(messages)
        if not batch.wait(deadline) or batch.failed:
            self._raise(batch, deadline)

    async def put_async(self, messages: Sequence[Outgoing], deadline: float) -> None:
        """The same on an event loop, which goes on meanwhile. Cancelled, it writes nothing more.

        Raises:
            PutError
        """
        if not messages:
            return
        loop = asyncio.get_running_loop()
        settled = loop.create_future()
        batch = self.submit(messages, lambda _: _tell(loop, settled))
        try:
            async with asyncio.timeout(deadline):
                await settled
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            with self._lock:
                batch.abandoned = True
            raise
        if batch.failed or not settled.done() or settled.cancelled():
            self._raise(batch, deadline)

    def submit(
        self, messages: Sequence[Outgoing], on_settled: Callable[[Batch], None] | None = None
    ) -> Batch:
        """Hand messages over, and go on; `on_settled` is called in the link's thread."""
        if self._closed:
            raise PutError("the connection to RabbitMQ was closed by its owner", not_queued=messages)
        link = self.link
        batch = Batch(messages, on_settled)
        self._submitted.append(batch)
        if not self._kicked:
            self._kicked = True
            link.call(self._pump)
        return batch

    def restore(self, queue: str) -> None:
        """Let the ladder end in a queue again: the queue was deleted, and its binding with it."""
        if not self._closed:
            self.link.call(lambda: self._restore(queue))

    def close(self) -> None:
        """Say goodbye. May be called twice."""
        with self._lock:
            self._closed = True
            link = self._link
        if link is not None:
            link.close()

    def _raise(self, batch: Batch, deadline: float) -> None:
        with self._lock:
            batch.abandoned = True
            missing = [entry for entry in batch.entries if not entry.confirmed]
            unknown = [entry.message for entry in missing if entry.may_be_queued]
            not_queued = [entry.message for entry in missing if not entry.may_be_queued]
        if not missing:
            return
        link = self.link
        late = f"RabbitMQ at {link.where} didn't confirm within {deadline:g} s"
        reason = (not batch.failed and (link.outage or link.blocked)) or batch.problem or late
        parts = []
        if not_queued:
            parts.append(f"{len(not_queued)} not queued")
        if unknown:
            parts.append(f"{len(unknown)} of unknown fate")
        count = f" ({', '.join(parts)} of {len(batch.entries)})" if len(batch.entries) > 1 else ""
        raise PutError(f"{reason}{count}", not_queued=not_queued, unknown=unknown)

    # -- in the link's thread ------------------------------------------------------------------------------

    def _up(self, stream: Stream) -> None:
        self._forget_channel()
        self._channel = stream.channel(on_open_callback=self._opened)
        self._channel.add_on_close_callback(self._channel_closed)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._returned)
        # The stream reads the confirms; this callback only switches them on.
        channel.confirm_delivery(lambda _: None, callback=lambda _: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        self._is_ready = True
        self._frame_max = self._stream.frame_max
        self._stream.on_confirm[channel.channel_number] = self._confirmed
        self._pump()

    @property
    def _stream(self) -> Stream:
        assert self._link is not None
        stream = self._link.stream
        assert stream is not None
        return stream

    def _down(self) -> None:
        self._write_again()

    def _channel_closed(self, channel: Channel, reason: Exception) -> None:
        if channel is not self._channel or self._link is None:
            return
        stream = self._link.stream
        if stream is None or not stream.is_open:
            return  # `_down` comes, too
        # An exchange of the ladder was deleted, the user may not publish, or something worse. What can heal
        # heals by starting over.
        log.warning("rabbitmq_publishing_interrupted", reason=str(reason))
        for entry in self._in_flight.values():
            entry.batch.problem = self._link.explain(reason)
        self._write_again()
        self._has_ladder = False
        self._bound.clear()
        self._interruptions += 1
        self._link.later(min(1.0, _LEAST_PAUSE * 2.0 ** min(self._interruptions, 10)), self._open_again)

    def _open_again(self) -> None:
        if self._link is not None and self._link.stream is not None and self._channel is None:
            self._up(self._link.stream)

    def _write_again(self) -> None:
        """What is in flight goes to the head of its batch again, in its order."""
        batches: dict[Batch, list[Entry]] = {}
        for entry in self._in_flight.values():
            batches.setdefault(entry.batch, []).append(entry)
        self._forget_channel()
        for batch, entries in batches.items():
            for entry in reversed(entries):
                entry.written = entry.returned = False
                entry.lost = True
                batch.waiting.appendleft(entry)
            self._stand_in_line(batch)

    def _stand_in_line(self, batch: Batch) -> None:
        if not batch.has_turn:
            batch.has_turn = True
            self._submitted.append(batch)

    def _turned_away(self, reason: str) -> None:
        while self._submitted:
            batch = self._submitted.popleft()
            batch.has_turn = False
            while batch.waiting:
                batch.fail(batch.waiting.popleft(), reason)

    def _pump(self) -> None:
        """Write what there is room for: some of each batch in turn, so that a long one holds up no other."""
        self._kicked = False
        link = self._link
        if link is None or link.blocked or not self._is_ready:
            return
        written: list[bytes] = []
        while self._submitted and (room := self._room()) > 0:
            batch = self._submitted[0]
            with self._lock:
                turn = [] if batch.abandoned else self._take(batch, min(room, _TURN))
            for entry in turn:
                self._write(entry, written)
            if len(written) > _TURN:  # RabbitMQ can begin while the rest is encoded
                self._stream.write(b"".join(written))
                written.clear()
            self._submitted.popleft()
            batch.has_turn = bool(batch.waiting) and not batch.abandoned
            if batch.has_turn:
                self._submitted.append(batch)
        if written:
            self._stream.write(b"".join(written))
        while self._to_declare:
            self._start_to_declare(self._to_declare.pop())

    def _room(self) -> int:
        """How many messages may be written now."""
        return WINDOW - len(self._in_flight) if self._bytes_in_flight < _WINDOW_BYTES else 0

    def _take(self, batch: Batch, limit: int) -> list[Entry]:
        """The next messages of a batch that can be written now, marked as written; others are set aside."""
        taken: list[Entry] = []
        while batch.waiting and len(taken) < limit:
            entry = batch.waiting.popleft()
            if self._is_declared(entry.message):
                entry.written = True
                taken.append(entry)
            else:
                self._set_aside(entry)
        return taken

    def _write(self, entry: Entry, written: list[bytes]) -> None:
        message = entry.message
        now = time.time()
        try:
            if message.due is not None and message.due > now:
                delay = max(UNIT, message.due - LEAD - now)
                way = self._ladder.way(named(self._namespace, message.queue), delay)
                method = frames.publish_method(self._number, *way)
            else:
                method = self._method(message.queue)
            since = now if message.due is None else max(0.0, message.due)
            content = frames.publish_content(self._number, message, since, self._frame_max, again=entry.lost)
        except (ValueError, OverflowError) as error:
            entry.batch.fail(entry, str(error))
            return
        written.append(method)
        written.append(content)
        self._last_tag += 1
        self._in_flight[self._last_tag] = entry
        self._bytes_in_flight += len(message.body)

    def _method(self, queue: str) -> bytes:
        method = self._methods.get(queue)
        if method is None:
            method = frames.publish_method(self._number, "", named(self._namespace, queue))
            self._methods[queue] = method
        return method

    @property
    def _number(self) -> int:
        assert self._channel is not None
        number: int = self._channel.channel_number
        return number

    # -- confirms

    def _confirmed(self, tag: int, multiple: bool, is_safe: bool) -> None:
        for entry in self._settled_by(tag, multiple):
            self._bytes_in_flight -= len(entry.message.body)
            if not is_safe:
                self._try_again(entry)
            elif entry.returned:
                self._missing_queue(entry)
            else:
                entry.batch.confirm(entry)
        self._interruptions = 0
        if self._submitted and len(self._in_flight) <= WINDOW // 2:
            self._pump()

    def _settled_by(self, tag: int, multiple: bool) -> Iterator[Entry]:
        in_flight = self._in_flight
        if not multiple:
            entry = in_flight.pop(tag, None)
            return iter(() if entry is None else (entry,))
        tags, self._lowest_tag = range(self._lowest_tag, tag + 1), tag + 1
        return (in_flight.pop(one) for one in tags if one in in_flight)

    def _returned(
        self, _channel: Channel, method: Basic.Return, properties: BasicProperties, _: bytes
    ) -> None:
        """Its queue is gone. The confirm comes all the same, later; here the message is only marked."""
        for entry in self._in_flight.values():
            message = entry.message
            if message.job_id == properties.message_id and not entry.returned:
                if not method.exchange and named(self._namespace, message.queue) != method.routing_key:
                    continue  # the same job, on its way to another queue
                entry.returned = True
                entry.batch.problem = (
                    f"RabbitMQ has no queue for '{method.routing_key}' ({method.reply_text})"
                )
                return

    def _missing_queue(self, entry: Entry) -> None:
        need = _need_of(entry.message)
        queue, delayed = need
        self._declared.discard(queue)
        self._bound.discard(queue)
        if delayed:
            self._has_ladder = False
        entry.returned = entry.written = False
        entry.refusals += 1
        if entry.refusals > _MOST_RETURNS:
            entry.batch.fail(entry, entry.batch.problem)
        elif need in self._undeclared:
            self._undeclared[need].append(entry)
        elif self._link is not None:
            self._undeclared[need] = [entry]
            self._link.later(AFTER_A_DELETION, lambda: self._start_to_declare(need))

    def _try_again(self, entry: Entry) -> None:
        assert self._link is not None
        entry.batch.problem = f"RabbitMQ at {self._link.where} refused a message for '{entry.message.queue}'"
        entry.written = False
        entry.refusals += 1
        pause = min(1.0, _LEAST_PAUSE * 2.0 ** min(entry.refusals, 10))
        self._link.later(pause, lambda: self._put_back(entry))

    def _put_back(self, entry: Entry) -> None:
        entry.batch.waiting.append(entry)
        self._stand_in_line(entry.batch)
        self._pump()

    # -- declaring

    def _is_declared(self, message: Outgoing) -> bool:
        if message.due is None:
            return message.queue in self._declared
        return self._has_ladder and message.queue in self._bound

    def _set_aside(self, entry: Entry) -> None:
        """Until its queue is declared."""
        need = _need_of(entry.message)
        if need not in self._undeclared:
            self._undeclared[need] = []
            self._to_declare.append(need)
        self._undeclared[need].append(entry)

    def _start_to_declare(self, need: tuple[str, bool]) -> None:
        assert self._link is not None
        self._link.perform(self._declare(*need), lambda _, error: self._declared_or_not(need, error))

    def _restore(self, queue: str) -> None:
        need = (queue, True)
        now = time.monotonic()
        if (
            need not in self._undeclared
            and now - self._restored.get(queue, -_RESTORE_PAUSE) >= _RESTORE_PAUSE
        ):
            self._restored[queue] = now
            self._undeclared[need] = []
            self._start_to_declare(need)

    def _declare(self, queue: str, delayed: bool) -> Script[None]:
        name = named(self._namespace, queue)
        yield from declare_queue(name, arguments_of(queue))
        if delayed:
            if not self._has_ladder:
                yield from self._ladder.declare()
            yield from self._ladder.bind(name)

    def _declared_or_not(self, need: tuple[str, bool], error: Exception | None) -> None:
        queue, delayed = need
        entries = self._undeclared.pop(need, [])
        if error is None:
            self._declared.add(queue)
            if delayed:
                self._has_ladder = True
                self._bound.add(queue)
        elif not isinstance(error, AMQPError):
            for entry in entries:
                entry.batch.fail(entry, str(error))
            return
        elif self._link is not None:
            log.warning("rabbitmq_queue_not_declared", queue=queue, reason=str(error))
            for entry in entries:
                entry.batch.problem = self._link.explain(error)
        for entry in reversed(entries):
            entry.batch.waiting.appendleft(entry)
            self._stand_in_line(entry.batch)
        if error is None:
            self._pump()
        elif self._link is not None:
            self._link.later(_LEAST_PAUSE * 5, self._pump)


def _tell(loop: asyncio.AbstractEventLoop, settled: asyncio.Future[None]) -> None:
    """Called in the link's thread."""

    def tell() -> None:
        if not settled.done():
            settled.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        loop.call_soon_threadsafe(tell)


def _need_of(message: Outgoing) -> tuple[str, bool]:
    """What has to be there before a message can be written: its queue, and whether the ladder too."""
    return message.queue, message.due is not None
