"""A replay: a letter becomes a message again, in the queue it came from, with all its attempts before it.

The life of one: a unique job takes its key again, or stays dead where another has it. What was asked of it
before it died, to be cancelled, is forgotten. Then its original bytes are sent, with their signature; or, mended, a
body with other arguments, which is checked by the actor and signed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dramatiq import Message

from callboard import envelope
from callboard.brokers import unique
from callboard.brokers.base import Broker
from callboard.brokers.driver import Outgoing
from callboard.dead_letter import DeadLetter
from callboard.envelope import Headers
from callboard.errors import NotPossible, NotQueued, StoreUnavailable, UnknownActor, Unreadable
from callboard.loggers import get_logger
from callboard.operations.letter_index import changed, masked
from callboard.operations.letter_walk import WalkResult
from callboard.states import State
from callboard.store.base import Change

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mended:
    """The message of a letter, with other arguments; these as JSON for the index, their secrets masked."""

    outgoing: Outgoing
    payload: str


class Replay:
    """The replay of some letters, one after the other.

    Args:
        broker: Whose letters.
        result: Where it says which letters stay, and why.
        who: By whom it is done, for the story of each job.
        mended: What is sent instead of the one letter that is meant.
    """

    def __init__(self, broker: Broker, result: WalkResult, *, who: str, mended: Mended | None) -> None:
        self._broker = broker
        self._result = result
        self._mended = mended
        self._text = f"{'replayed with a mended payload' if mended else 'replayed'} by {who}"
        self._now = broker.clock()
        self._cancelled = _cancelled(broker)

    def decide(self, letter: DeadLetter) -> tuple[Outgoing, Change] | None:
        """The message that a letter becomes, and what becomes known of its job; None if it has to stay."""
        if (owner := _key_owner(self._broker, letter)) != letter.job_id:
            self._result.key_taken[letter.job_id] = owner
            return None
        if _is_past_deadline(letter, self._now):
            self._result.past_deadline += 1
        if letter.job_id in self._cancelled:
            _forget_cancel(self._broker, letter.job_id)
        change = changed(letter, State.QUEUED, letter.headers.hop + 1, self._now)
        change.attempt, change.reason, change.event = 0, "", self._text
        change.payload = self._mended.payload if self._mended is not None else None
        return self._outgoing(letter), change

    def _outgoing(self, letter: DeadLetter) -> Outgoing:
        """A new life with all attempts, that remembers the errors."""
        old, mended = letter.headers, self._mended
        headers = Headers(
            hop=old.hop + 1,
            errors=list(letter.attempts),
            deaths=letter.death,
            replayed_at=self._now,
            signature=old.signature
            if mended is None
            else envelope.decode_headers(mended.outgoing.headers).signature,
        )
        body = letter.original if mended is None else mended.outgoing.body
        return Outgoing(letter.queue, body, letter.job_id, envelope.encode_headers(headers))


def mend(broker: Broker, letter: DeadLetter, payload: Mapping[str, Any]) -> Mended:
    """A letter's message with other arguments, checked and signed.

    Raises:
        InvalidPayload: They don't fit the actor.
        UnknownActor: The actor that should check them isn't declared here.
        NotPossible: The letter isn't what a worker here wrote.
    """
    if letter.actor not in broker.actors:
        raise UnknownActor(letter.actor, broker.actors)
    message = _trusted(broker, letter)
    object.__setattr__(message, "queue_name", letter.queue)
    outgoing = broker.prepare(message.copy(args=(), kwargs=dict(payload)))
    return Mended(outgoing, masked(broker, letter.actor, payload))


def _trusted(broker: Broker, letter: DeadLetter) -> Message[Any]:
    """The message in a letter, if a worker would run it. It is about to be signed anew with all its
    options, so a forged letter must not get that far."""
    refused = f"the letter of job {letter.job_id} can't be mended"
    try:
        message = _verified(broker, letter)
    except Unreadable as error:
        raise NotPossible(f"{refused}: {error}; it can only be discarded") from error
    if (message.message_id, message.actor_name) != (letter.job_id, letter.actor):
        raise NotPossible(
            f"{refused}: the message in it is of job {message.message_id} of '{message.actor_name}'; "
            "it can only be discarded"
        )
    return message


def _verified(broker: Broker, letter: DeadLetter) -> Message[Any]:
    broker.verify(letter.queue, letter.original, letter.headers.signature)
    return envelope.decode(letter.original, max_bytes=len(letter.original))


def _key_owner(broker: Broker, letter: DeadLetter) -> str:
    """Take a unique job's key again for its new life; the id of the job that has it now, or '' if that can't
    be told. What a worker would not run takes no key: it could be that of another job."""
    try:
        message = _verified(broker, letter)
        extras = envelope.extras_of(message.options)
    except (Unreadable, RecursionError):
        return letter.job_id
    if extras.unique is None or extras.unique_for is not None or message.message_id != letter.job_id:
        return letter.job_id
    try:
        # For a whole life, not a send: a walk may last. If it breaks off the record still says dead, and
        # the key of a dead job is taken over, a while after the announcement.
        if broker.store is not None:
            unique.announce_replay(broker.store, letter.job_id)
        return unique.hold(broker.store, message, extras, deadline=unique.TTL.total_seconds())
    except (NotQueued, StoreUnavailable) as error:
        log.warning("letter kept: its unique key can't be taken", job_id=letter.job_id, error=str(error))
        return ""


def _is_past_deadline(letter: DeadLetter, now: float) -> bool:
    """Whether the job says that it must not start any more."""
    try:
        body = letter.original
        expires = envelope.extras_of(envelope.read(body, max_bytes=len(body)).options).expires
    except (Unreadable, RecursionError):
        return False
    return expires is not None and now > expires


def _cancelled(broker: Broker) -> Collection[str]:
    try:
        control = broker.store.control() if broker.store is not None else None
    except StoreUnavailable:
        return ()
    return control.cancelled if control is not None else ()


def _forget_cancel(broker: Broker, job_id: str) -> None:
    """A replayed job is wanted again, whatever was asked before it died."""
    try:
        if broker.store is not None:
            broker.store.forget_cancel(job_id)
    except StoreUnavailable as error:
        log.warning("cancellation not forgotten", job_id=job_id, error=str(error))
