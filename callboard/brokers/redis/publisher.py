"""Putting: one connection a process, which all threads share without a thread of its own.

A thread that comes while another talks to Redis leaves its messages in the queue; whoever talks next takes all that
has gathered, in one call. The calls of a process are numbered, one after the other, and Redis remembers the last: so a
call whose answer was lost is simply made again, and nothing is there twice or never. When the deadline
passes, what was written and not answered is "unknown", and a later call sees to it that it can't arrive any more
if it hasn't.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum

from callboard import forks
from callboard.brokers.driver import Outgoing, PutError
from callboard.brokers.redis.messages import due_of, pack
from callboard.errors import BrokerUnavailable
from callboard.redis.link import Link
from callboard.redis.outage import Refused, Unreachable

_PATIENCE = 2.0  # seconds to wait for an answer before asking again on a new connection
_MOST_MESSAGES, _MOST_BYTES = 1000, 1_000_000  # in one call, so that others get their turn


class _Fate(Enum):
    """What became of a parcel."""

    PENDING = "pending"
    SAFE = "safe"
    CLAIM_GONE = "claim gone"
    NOT_QUEUED = "not queued"
    UNKNOWN = "unknown"


class _Call:
    """One thread's messages."""

    __slots__ = ("latch", "leads", "left", "parcels", "problem", "until")

    def __init__(self, messages: Sequence[Outgoing], claim: tuple[str, str] | None, until: float) -> None:
        self.parcels = [_Parcel(self, part, claim) for part in _parts(messages)]
        self.left = len(self.parcels)  # how many are pending
        self.until = until
        self.problem = ""
        self.leads = False
        #: On which its thread waits until all is settled, or it is to lead.
        self.latch: threading.Lock | None = None

    def wake(self) -> None:
        if self.latch is not None and self.latch.locked():
            self.latch.release()

    def messages(self, fate: _Fate) -> list[Outgoing]:
        return [message for parcel in self.parcels if parcel.fate is fate for message in parcel.messages]


class _Parcel:
    """Messages of one thread that are put in one go."""

    __slots__ = ("call", "claim", "fate", "messages", "size")

    def __init__(self, call: _Call, messages: Sequence[Outgoing], claim: tuple[str, str] | None) -> None:
        self.call = call
        self.messages = messages
        self.claim = claim  # the worker and the id of what is exchanged for the one message
        self.size = sum(len(message.body) for message in messages)
        self.fate = _Fate.PENDING


class _Batch:
    """The parcels of one call of the script."""

    __slots__ = ("failures", "number", "parcels", "written")

    def __init__(self, number: int, parcels: list[_Parcel]) -> None:
        self.number = number
        self.parcels = parcels
        self.written = False  # and perhaps done
        self.failures = 0


class Publisher:
    """What puts and moves messages."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._reset()
        forks.follow(self)

    def _reset(self) -> None:
        self._sender = secrets.token_hex(8)
        self._mutex = threading.Lock()  # guards who leads, the queue, the batch, and the parcels' fates
        self._talking = threading.Lock()  # held while the link is in use
        self._queue: deque[_Parcel] = deque()
        self._batch: _Batch | None = None  # under way, or to be repeated
        self._leader: _Call | None = None
        self._number = 0
        self._known: set[str] = set()  # queues that Redis knows
        self._closed = False

    def forked(self) -> None:
        """Begin anew: who waited isn't in this process."""
        closed = self._closed
        self._reset()
        self._closed = closed

    def put(self, messages: Sequence[Outgoing], deadline: float) -> None:
        """Queue messages.

        Raises:
            PutError
        """
        if messages:
            self._send(_Call(messages, None, time.monotonic() + deadline), deadline)

    def exchange(self, message: Outgoing, worker: str, claim: str, deadline: float) -> bool:
        """Queue a message for one that a worker has claimed; False if the claim is gone.

        Raises:
            PutError
        """
        call = _Call([message], (worker, claim), time.monotonic() + deadline)
        self._send(call, deadline)
        return call.parcels[0].fate is _Fate.SAFE

    def _send(self, call: _Call, deadline: float) -> None:
        self._submit(call)
        try:
            if call.latch is not None:
                call.latch.acquire(timeout=max(0.0, call.until - time.monotonic()))
            if call.leads:
                with self._talking:
                    self._lead(call)
        finally:
            self._leave(call)
        not_queued, unknown = call.messages(_Fate.NOT_QUEUED), call.messages(_Fate.UNKNOWN)
        if not_queued or unknown:
            reason = call.problem or f"{self._link.address} was busy for longer than {deadline:g} s"
            several = len(not_queued) + len(unknown) > 1
            count = f" ({len(not_queued)} not queued, {len(unknown)} of unknown fate)" if several else ""
            raise PutError(
                f"{reason}{count}",
                not_queued=not_queued,
                unknown=unknown,
            )

    def _submit(self, call: _Call) -> None:
        with self._mutex:
            if self._closed:
                raise PutError(
                    "the driver was closed by its owner",
                    not_queued=[message for parcel in call.parcels for message in parcel.messages],
                )
            self._queue.extend(call.parcels)
            if self._leader is None:
                self._leader = call
                call.leads = True
            else:
                call.latch = threading.Lock()
                call.latch.acquire()

    def _leave(self, call: _Call) -> None:
        """Give up what isn't settled, and let another lead."""
        with self._mutex:
            batch = self._batch
            for parcel in call.parcels if call.left else ():
                if parcel.fate is _Fate.PENDING:
                    if batch is None or parcel not in batch.parcels:
                        self._queue.remove(parcel)
                        parcel.fate = _Fate.NOT_QUEUED
                    else:
                        parcel.fate = _Fate.UNKNOWN if batch.written else _Fate.NOT_QUEUED
            if self._leader is call:
                self._leader = heir = next(self._pending(), None)
                if heir is not None:
                    heir.leads = True
                    heir.wake()

    def _pending(self) -> Iterator[_Call]:
        for parcel in [*(self._batch.parcels if self._batch is not None else ()), *self._queue]:
            if parcel.fate is _Fate.PENDING:
                yield parcel.call

    # -- whoever leads -------------------------------------------------------------------------------------

    def _lead(self, call: _Call) -> None:
        while call.left and not self._closed and time.monotonic() < call.until:
            batch = self._next_batch()
            try:
                gone = self._write(batch, call.until)
            except BrokerUnavailable as error:
                if isinstance(error, Refused) and not error.passing:
                    self._settle(batch, None, str(error))
                    continue
                self._note(batch, str(error))
                batch.failures += 1
                # The connection may have been idle for so long that Redis closed it. That is no outage.
                if batch.failures > 1 or not (isinstance(error, Unreachable) and error.sent):
                    time.sleep(max(0.0, min(self._link.pause(), call.until - time.monotonic())))
            else:
                self._settle(batch, gone, "")

    def _next_batch(self) -> _Batch:
        """The one to be repeated, without what was given up; else of what waits as much of one kind as fits."""
        with self._mutex:
            if (batch := self._batch) is not None:
                batch.parcels = [parcel for parcel in batch.parcels if parcel.fate is _Fate.PENDING]
                if batch.parcels:
                    return batch
            queue, first = self._queue, self._queue.popleft()
            parcels, count, size = [first], len(first.messages), first.size
            # Exchanges go on while Redis is out of memory, puts don't.
            while queue and (queue[0].claim is None) is (first.claim is None):
                count, size = count + len(queue[0].messages), size + queue[0].size
                if count > _MOST_MESSAGES or size > _MOST_BYTES:
                    break
                parcels.append(queue.popleft())
            self._number += 1
            self._batch = batch = _Batch(self._number, parcels)
            return batch

    def _write(self, batch: _Batch, until: float) -> list[int]:
        """Returns which of the batch's messages (1, 2, ...) lost their claim."""
        if not self._link.is_up:
            self._known = set()  # Redis may have lost what it knew
            self._link.connect(until)
        entries: list[tuple[object, ...]] = []
        values: list[bytes] = []
        for parcel in batch.parcels:
            claim = parcel.claim or ()
            entries.extend((message.queue, due_of(message), *claim) for message in parcel.messages)
            values.extend(map(pack, parcel.messages))
        script = "put" if batch.parcels[0].claim is None else "exchange"
        queues = {message.queue for parcel in batch.parcels for message in parcel.messages}
        before, batch.written = batch.written, True
        try:
            answer: bytes = self._link.run(
                script,
                (self._sender, batch.number, entries, [*(queues - self._known)]),
                values,
                until=min(until, time.monotonic() + _PATIENCE),
            )
        except Refused:
            batch.written = before
            raise
        except Unreachable as error:
            batch.written = before or error.sent
            raise
        self._known |= queues
        return [int(number) for number in answer.split()]

    def _note(self, batch: _Batch, problem: str) -> None:
        for parcel in batch.parcels:
            parcel.call.problem = problem

    def _settle(self, batch: _Batch, gone: list[int] | None, problem: str) -> None:
        """All is done but the exchanges in `gone`; or, if that is None, it was refused."""
        with self._mutex:
            self._batch = None
            for number, parcel in enumerate(batch.parcels, 1):
                if parcel.fate is not _Fate.PENDING:
                    continue
                if gone is None:
                    parcel.fate = _Fate.UNKNOWN if batch.written else _Fate.NOT_QUEUED
                    parcel.call.problem = problem
                elif number in gone and parcel.claim is not None:
                    parcel.fate = _Fate.CLAIM_GONE
                else:
                    parcel.fate = _Fate.SAFE
                parcel.call.left -= 1
                if not parcel.call.left:
                    parcel.call.wake()

    def close(self) -> None:
        """Hang up; what comes later is refused."""
        with self._mutex:
            self._closed = True
        if self._talking.acquire(timeout=_PATIENCE):
            self._link.close()
            self._talking.release()


def _parts(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """Messages in parts that each go into one call of the script."""
    if len(messages) == 1:
        yield messages
        return
    start = size = 0
    for end, message in enumerate(messages):
        size += len(message.body)
        if end > start and (end - start >= _MOST_MESSAGES or size > _MOST_BYTES):
            yield messages[start:end]
            start, size = end, len(message.body)
    yield messages[start:]
