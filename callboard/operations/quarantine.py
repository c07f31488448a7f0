"""The quarantine: messages that can't be read or trusted, kept for somebody to look at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from dramatiq import Message

from callboard import envelope, queues
from callboard.brokers import unique
from callboard.brokers.base import Broker
from callboard.brokers.driver import Driver, Outgoing, StoredMessage, Verdict
from callboard.brokers.receiving import RECEIVE_LIMIT
from callboard.envelope import Headers
from callboard.errors import (
    BrokerUnavailable,
    InvalidPayload,
    JobNotFound,
    NotPossible,
    StoreUnavailable,
    Unreadable,
)
from callboard.loggers import get_logger
from callboard.operations.audit import Audit
from callboard.payload import masked_json

log = get_logger(__name__)

_SHOWN_BYTES = 4_000
#: Options of Dramatiq that make other jobs run, besides all that begin with 'group_'.
_STARTING = frozenset({"pipe_target", "on_success", "on_failure", "on_retry_exhausted"})
_ORIGIN = re.compile(r"from (?P<queue>\S+): (?P<reason>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A message in quarantine.

    Attributes:
        id: Twelve hexadecimal digits over what it is: such messages have no id of their own.
        queue: Where it came from, or '' if that isn't known.
        reason: Why it is here.
        size: Of its body, in bytes.
        body: The body's beginning, for people; secrets are masked where it is JSON.
        options: Its options as JSON, or '' if it has none or can't be read; secrets are masked.
        starts: The names of those options that make other jobs run, with payloads that it brings along.
        copies: How many messages are exactly like this one.
    """

    id: str
    queue: str
    reason: str
    since: float | None
    size: int
    body: str
    options: str = ""
    starts: tuple[str, ...] = ()
    copies: int = 1


@dataclass(slots=True, kw_only=True)
class QuarantineResult:
    """What was done: the ids, how many messages, and which ids weren't there."""

    ids: list[str] = field(default_factory=list)
    count: int = 0
    not_found: list[str] = field(default_factory=list)


class Quarantine:
    """The quarantine of a broker.

    Args:
        broker: Whose.
        audit: Where each act is written down.
    """

    def __init__(self, broker: Broker, audit: Audit) -> None:
        self._broker = broker
        self._audit = audit

    def search(self, *, limit: int = 50) -> list[Suspect]:
        """What lies there, the oldest first. Reads the queue, for no index has it.

        Raises:
            BrokerUnavailable
        """
        suspects: dict[str, Suspect] = {}
        for message in self._broker.driver.peek(queues.QUARANTINE, limit):
            suspect = _suspect(message)
            if (known := suspects.get(suspect.id)) is not None:
                suspect = replace(known, copies=known.copies + 1)
            suspects[suspect.id] = suspect
        return list(suspects.values())

    def show(self, suspect_id: str) -> Suspect:
        """One message.

        Raises:
            JobNotFound
            BrokerUnavailable
        """
        found: list[Suspect] = []

        def look(message: StoredMessage) -> Verdict:
            if identity(message) == suspect_id:
                found.append(_suspect(message))
            return Verdict.KEEP

        self._broker.driver.walk(queues.QUARANTINE, look)
        if not found:
            raise JobNotFound(f"there is no message {suspect_id} in quarantine")
        return replace(found[0], copies=len(found))

    def discard(
        self,
        ids: Collection[str] | None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> QuarantineResult:
        """Throw messages away, or with None all. It is audited before and after.

        Unique jobs among them let go of their keys, unless the broker can tell that it has them elsewhere, too.

        Raises:
            StoreUnavailable: It can't be audited, so nothing was thrown away.
            BrokerUnavailable
        """
        target = "all" if ids is None else ",".join(sorted(ids)[:100])
        self._audit.announce("quarantine.discard", target)
        result = QuarantineResult()
        keys: set[tuple[str, str]] = set()

        def decide(message: StoredMessage) -> Verdict:
            suspect_id = identity(message)
            if ids is not None and suspect_id not in ids:
                return Verdict.KEEP
            result.count += 1
            if suspect_id not in result.ids:
                result.ids.append(suspect_id)
            keys.update(unique_keys(message.body))
            return Verdict.DISCARD

        self._broker.driver.walk(queues.QUARANTINE, decide, progress=progress)
        self._release(keys)
        result.not_found = sorted(set(ids or ()) - set(result.ids))
        self._audit.done("quarantine.discard", target, count=result.count)
        return result

    def replay(self, suspect_id: str, *, with_options: bool = False) -> str:
        """Vouch for a message: check it, sign it anew and send it to the queue it came from.

        For messages that were honest and came in an evil hour: while the keys didn't match, or a worker was
        too old for them. Returns the job's id.

        Args:
            suspect_id: The message.
            with_options: Vouch for it even if its options make other jobs run. See `Suspect.starts`.

        Raises:
            JobNotFound
            NotPossible: It can't be read, or it isn't known where it came from. Or its options make other jobs
                run, and were not vouched for.
            InvalidPayload: Its payload doesn't fit its actor.
            BrokerUnavailable
        """
        outgoing = self._vouched(self._find(suspect_id), with_options=with_options)
        headers = envelope.decode_headers(outgoing.headers)
        headers.hop = self._next_hop(outgoing.job_id)
        outgoing.headers = envelope.encode_headers(headers)
        moved: list[str] = []

        def decide(message: StoredMessage) -> Outgoing | Verdict:
            if identity(message) != suspect_id or moved:
                return Verdict.KEEP
            moved.append(suspect_id)
            return outgoing

        self._broker.driver.walk(queues.QUARANTINE, decide)
        if not moved:
            raise JobNotFound(f"there is no message {suspect_id} in quarantine any more")
        self._audit.done("quarantine.replay", suspect_id, job_id=outgoing.job_id, queue=outgoing.queue)
        return outgoing.job_id

    def _release(self, keys: Collection[tuple[str, str]]) -> None:
        """A forged message may name a job that is well, and its key: that one keeps it. Where the driver can't say
        whether it has a job, keys are left to end by themselves."""
        if type(self._broker.driver).locate is Driver.locate:
            return
        try:
            lost = [
                (key, job_id) for key, job_id in sorted(keys) if self._broker.driver.locate(job_id) is None
            ]
        except BrokerUnavailable as error:
            log.warning("unique keys not released, they end by themselves", error=str(error))
            return
        unique.release(self._broker.store, lost)

    def _next_hop(self, job_id: str) -> int:
        """What is recorded from here on has to be newer than what is known: the hops before are forgotten in
        quarantine, but not in the record."""
        try:
            record = self._broker.store.get(job_id) if self._broker.store is not None else None
        except StoreUnavailable:
            return 0
        return record.order // 16 + 1 if record is not None else 0

    def _find(self, suspect_id: str) -> StoredMessage:
        found: list[StoredMessage] = []

        def look(message: StoredMessage) -> Verdict:
            if not found and identity(message) == suspect_id:
                found.append(message)
            return Verdict.KEEP

        self._broker.driver.walk(queues.QUARANTINE, look)
        if not found:
            raise JobNotFound(f"there is no message {suspect_id} in quarantine")
        return found[0]

    def _vouched(self, message: StoredMessage, *, with_options: bool) -> Outgoing:
        queue, _ = _origin(message)
        if not queue or queue.endswith(".dead"):
            raise NotPossible(
                "it isn't known which queue of jobs the message came from; it can only be discarded"
            )
        try:
            decoded = envelope.decode(message.body, max_bytes=RECEIVE_LIMIT)
        except Unreadable as error:
            raise NotPossible(
                f"the message can't be sent again: {error}; it can only be discarded"
            ) from error
        if (starts := _starts(decoded)) and not with_options:
            raise NotPossible(
                f"the message makes other jobs run, by its options {', '.join(starts)}; look at them with "
                "'callboard quarantine show', and vouch for them, too, with --with-options"
            )
        object.__setattr__(decoded, "queue_name", queue)
        try:
            return self._broker.prepare(decoded)
        except InvalidPayload as error:
            raise NotPossible(f"the message can't be sent again: {error}") from error


def identity(message: StoredMessage) -> str:
    """Twelve hexadecimal digits that stand for a message."""
    return hashlib.sha256(message.headers + b"\0" + message.body).hexdigest()[:12]


def suspect_of_job(driver: Driver, job_id: str) -> Suspect | None:
    """The message of a job, if it lies among the first thousand in quarantine.

    Raises:
        BrokerUnavailable
    """
    if not driver.counts([queues.QUARANTINE])[queues.QUARANTINE].ready:
        return None
    for message in driver.peek(queues.QUARANTINE, 1000):
        if job_id.encode() not in message.body:
            continue
        try:
            if envelope.decode(message.body, max_bytes=RECEIVE_LIMIT).message_id == job_id:
                return _suspect(message)
        except Unreadable:
            continue
    return None


def unique_keys(body: bytes) -> set[tuple[str, str]]:
    """The key that a message's job holds until it ends, with the job's id; none if it isn't unique or can't be read."""
    try:
        decoded = envelope.decode(body, max_bytes=RECEIVE_LIMIT)
        extras = envelope.extras_of(decoded.options)
    except (Unreadable, RecursionError):
        return set()
    if extras.unique is None or extras.unique_for is not None:
        return set()
    return {(unique.name_of(extras), decoded.message_id)}


def _headers(message: StoredMessage) -> Headers:
    try:
        return envelope.decode_headers(message.headers)
    except Unreadable:
        return Headers()


def _origin(message: StoredMessage) -> tuple[str, str]:
    """The queue it came from, and why it is here."""
    reason = _headers(message).reason
    match = _ORIGIN.fullmatch(reason)
    return (match["queue"], match["reason"]) if match is not None else ("", reason)


def _decoded(body: bytes) -> Message[Any] | None:
    try:
        return envelope.decode(body, max_bytes=RECEIVE_LIMIT)
    except Unreadable:
        return None


def _starts(message: Message[Any]) -> tuple[str, ...]:
    """The names of its options that make other jobs run."""
    return tuple(
        sorted(
            name
            for name, value in message.options.items()
            if (name in _STARTING or name.startswith("group_")) and value is not None
        )
    )


def _suspect(message: StoredMessage) -> Suspect:
    queue, reason = _origin(message)
    decoded = _decoded(message.body)
    options = decoded.options if decoded is not None else {}
    return Suspect(
        id=identity(message),
        queue=queue,
        reason=reason,
        since=_headers(message).ready_at,
        size=len(message.body),
        body=_readable(message.body, decoded),
        options=_masked(options)[:_SHOWN_BYTES] if options else "",
        starts=_starts(decoded) if decoded is not None else (),
    )


def _readable(body: bytes, decoded: Message[Any] | None) -> str:
    if decoded is None:
        text = body[:_SHOWN_BYTES].decode(errors="replace")
        return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
    return _masked(
        {
            "actor": decoded.actor_name,
            "id": decoded.message_id,
            "args": decoded.args,
            "kwargs": decoded.kwargs,
        }
    )[:_SHOWN_BYTES]


def _masked(value: Any) -> str:
    try:
        return masked_json(value)
    except RecursionError:
        return "(nested too deeply to be shown)"
