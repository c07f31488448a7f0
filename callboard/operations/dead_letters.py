"""Dead letters: looked up in the index, changed by a walk over the queue.

The queue `<category>.dead` is the truth, the store its index: `search` and `show` read the index. Every
change is one walk that looks at each letter once, so it finds letters that the index doesn't know, too, and
what it does is true whatever the index says. Copies of a letter (a crash leaves them) are merged on the way.
A store that was lost, or is behind, is put right by `reindex`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dramatiq import Message

from callboard import dead_letter, envelope, queues
from callboard.actor import JobActor
from callboard.brokers import unique
from callboard.brokers.base import Broker
from callboard.brokers.driver import Outgoing, StoredMessage, Verdict
from callboard.dead_letter import DeadLetter
from callboard.envelope import Headers
from callboard.errors import JobNotFound, NotPossible, NotQueued, StoreUnavailable, UnknownActor, Unreadable
from callboard.loggers import get_logger
from callboard.operations.audit import Audit
from callboard.operations.letters import (
    AUDITED_IDS,
    Cause,
    LetterDetails,
    Letters,
    LetterSummary,
    details_of,
    details_of_record,
    summary_of,
    summary_of_record,
)
from callboard.operations.records import BATCH, records_of
from callboard.payload import masked_json
from callboard.states import State, order
from callboard.store.base import Change, Query, Record, Store

log = get_logger(__name__)

#: Called now and then on a long walk: the queue, how many letters were looked at, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(slots=True, kw_only=True)
class WalkResult:
    """What a walk over letters did.

    Attributes:
        job_ids: The letters that it changed, each once.
        seen: How many messages it looked at.
        merged: How many were copies of another, and went.
        unreadable: How many are no letters, or none that can be replayed; they stayed, or went to quarantine.
        not_found: Ids that were asked for and that no queue has.
        key_taken: Unique ones that stayed because another job has their key: id -> the id of that job, or '' where
            the store can't tell.
        past_deadline: Replayed ones whose deadline has passed: they end as expired.
        recorded: Whether the store has taken it all. If not, its index is behind: see `reindex`.
        stale: Records that said dead and had no letter; they now say discarded (by `reindex`).
    """

    job_ids: list[str] = field(default_factory=list)
    seen: int = 0
    merged: int = 0
    unreadable: int = 0
    not_found: list[str] = field(default_factory=list)
    key_taken: dict[str, str] = field(default_factory=dict)
    past_deadline: int = 0
    recorded: bool = True
    stale: int = 0


class DeadLetters:
    """The dead letters of a broker.

    Args:
        broker: Whose.
        audit: Where each act is written down.
    """

    def __init__(self, broker: Broker, audit: Audit) -> None:
        self._broker = broker
        self._audit = audit

    # -- reading the index -------------------------------------------------------------------------------

    def search(self, which: Letters | None = None, *, limit: int = 50) -> list[LetterSummary]:
        """The newest letters that the index knows.

        Raises:
            StoreUnavailable
        """
        which = which or Letters()
        found: list[LetterSummary] = []
        for summary in self._indexed(which):
            found.append(summary)
            if len(found) >= limit:
                break
        return found

    def causes(self, which: Letters | None = None, *, limit: int = 10_000) -> list[Cause]:
        """The letters that the index knows, by fingerprint; the commonest cause first.

        Args:
            which: The letters to look at.
            limit: At most so many letters, the newest ones.

        Raises:
            StoreUnavailable
        """
        groups: dict[str, list[LetterSummary]] = {}
        for summary in self.search(which, limit=limit):
            groups.setdefault(summary.fingerprint, []).append(summary)
        causes = [
            Cause(
                fingerprint=fingerprint,
                actor=letters[0].actor,
                error=letters[0].error,
                count=len(letters),
                first_at=min(letter.died_at for letter in letters),
                last_at=max(letter.died_at for letter in letters),
            )
            for fingerprint, letters in groups.items()
        ]
        return sorted(causes, key=lambda cause: (-cause.count, -cause.last_at))

    def counts(self) -> dict[str, int]:
        """How many letters each category's queue has, copies included.

        Raises:
            BrokerUnavailable
        """
        names = self._queues(())
        return {
            name.removesuffix(".dead"): count.ready
            for name, count in self._broker.driver.counts(names).items()
            if count.ready
        }

    def unindexed(self) -> int:
        """How many letters the queues have that the index doesn't know, as far as numbers can tell.

        Raises:
            BrokerUnavailable
            StoreUnavailable
        """
        indexed = self._store().count_by_state().get(State.DEAD, 0)
        return max(0, sum(self.counts().values()) - indexed)

    def show(self, job_id: str) -> LetterDetails:
        """A letter with its story: from the store, or from its queue if the store doesn't have it.

        Raises:
            JobNotFound: It is no dead letter, as far as the store and the queues know.
            BrokerUnavailable: Needed, and away.
        """
        try:
            record = self._store().get(job_id)
        except StoreUnavailable:
            record = None
        if record is not None and record.state is State.DEAD:
            return details_of_record(record)
        # A record stays behind if the process that knew of the death was killed in that moment.
        letter = self.find(job_id) if record is None or not record.state.is_end else None
        if letter is None and record is not None:
            raise JobNotFound(f"job {job_id} is no dead letter: it is {record.state}")
        if letter is None:
            raise JobNotFound(f"there is no dead letter {job_id}, neither in the store nor in the queues")
        return details_of(letter, payload=self._masked_original(letter))

    def find(self, job_id: str, *, progress: Progress | None = None) -> DeadLetter | None:
        """A letter by a walk over the queues, whatever the index says."""
        found: list[DeadLetter] = []

        def look(message: StoredMessage) -> Verdict:
            if (letter := _read(message)) is not None and letter.job_id == job_id:
                found.append(letter)
            return Verdict.KEEP

        for name in self._queues(()):
            if self._broker.driver.counts([name])[name].ready:
                self._walk(name, look, progress)
        return max(found, key=lambda letter: letter.death, default=None)

    # -- changes -----------------------------------------------------------------------------------------

    def replay(
        self,
        which: Letters,
        *,
        payload: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> WalkResult:
        """Send letters back to where they came from, with all their attempts before them.

        A unique job takes its key again; where another job has it now, the letter stays.

        The original bytes are sent, with their signature. A mended payload makes a new body for the same
        job: it is checked by the actor and signed anew.

        Args:
            which: The letters.
            payload: Instead of the arguments that one letter has; only with a single id.
            progress: See `Progress`.

        Raises:
            InvalidPayload: The mended payload doesn't fit the actor. Nothing was changed.
            UnknownActor: The actor that should check the mended payload isn't declared here.
            NotPossible: The letter to be mended isn't what a worker here wrote: its message is of another job,
                or its signature is missing or wrong.
            BrokerUnavailable: Some letters may have been replayed; none is lost.
        """
        if payload is not None and len(which.ids) != 1:
            raise ValueError("a mended payload is for one letter: give one id")
        mended = self._mend(next(iter(which.ids)), payload) if payload is not None else None
        now = self._broker.clock()
        cancelled = self._cancelled()
        result = WalkResult()
        text = f"{'replayed with a mended payload' if mended else 'replayed'} by {self._audit.who}"
        masked = self._masked(mended.actor, payload or {}) if mended is not None else None

        def decide(letter: DeadLetter) -> tuple[Outgoing, Change] | None:
            if (owner := self._key_owner(letter)) != letter.job_id:
                result.key_taken[letter.job_id] = owner
                return None
            if _is_past_deadline(letter, now):
                result.past_deadline += 1
            if letter.job_id in cancelled:
                self._forget_cancel(letter.job_id)
            change = _changed(letter, State.QUEUED, letter.headers.hop + 1, now)
            change.attempt, change.reason, change.event, change.payload = 0, "", text, masked
            return _replayed(letter, now, mended.outgoing if mended is not None else None), change

        self._change(which, decide, result, progress)
        if result.job_ids:
            details = which.as_json() | ({"mended": True} if mended is not None else {})
            self._audit.done("dead.replay", str(which), count=len(result.job_ids), **details)
        return result

    def discard(self, which: Letters, *, reason: str = "", progress: Progress | None = None) -> WalkResult:
        """Throw letters away. It is audited before and after.

        Raises:
            StoreUnavailable: It can't be audited, so nothing was thrown away.
            BrokerUnavailable: Some may have been thrown away; the audit says that it was begun.
        """
        self._audit.announce("dead.discard", str(which), **which.as_json())
        now = self._broker.clock()
        text = f"discarded by {self._audit.who}" + (f": {reason}" if reason else "")
        result = WalkResult()

        def decide(letter: DeadLetter) -> tuple[Verdict, Change]:
            change = _changed(letter, State.DISCARDED, letter.headers.hop, now)
            change.finished_at, change.reason, change.event = now, text, text
            return Verdict.DISCARD, change

        self._change(which, decide, result, progress)
        self._audit.done(
            "dead.discard",
            str(which),
            count=len(result.job_ids),
            reason=reason,
            job_ids=result.job_ids[:AUDITED_IDS],
        )
        return result

    def reindex(self, categories: Collection[str] = (), *, progress: Progress | None = None) -> WalkResult:
        """Make the index what the queues are: read every letter into it, and settle records without a letter.

        What is no letter goes to quarantine.

        Raises:
            StoreUnavailable
            BrokerUnavailable
        """
        started = self._broker.clock()
        result = WalkResult()
        store = self._store()
        names = self._queues(categories)
        for name in names:
            batch: list[Change] = []
            seen: set[tuple[str, int]] = set()

            def look(
                message: StoredMessage,
                batch: list[Change] = batch,
                seen: set[tuple[str, int]] = seen,
            ) -> Outgoing | Verdict:
                result.seen += 1
                letter = _read(message)
                if letter is None:
                    result.unreadable += 1
                    return _quarantined(message, started)
                if (letter.job_id, letter.death) in seen:
                    result.merged += 1
                    return Verdict.DISCARD
                seen.add((letter.job_id, letter.death))
                result.job_ids.append(letter.job_id)
                batch.append(self._indexing(letter))
                if len(batch) >= BATCH:
                    store.write(batch)
                    batch.clear()
                return Verdict.KEEP

            self._walk(name, look, progress)
            store.write(batch)
            result.stale += self._settle_stale(
                name.removesuffix(".dead"), {job_id for job_id, _ in seen}, started
            )
        self._audit.done(
            "dead.reindex",
            ",".join(sorted(categories)) or "all",
            count=len(result.job_ids),
            stale=result.stale,
            merged=result.merged,
            unreadable=result.unreadable,
        )
        return result

    # -- the walk ----------------------------------------------------------------------------------------

    def _change(
        self,
        which: Letters,
        decide: Callable[[DeadLetter], tuple[Outgoing | Verdict, Change] | None],
        result: WalkResult,
        progress: Progress | None,
    ) -> None:
        """Walk where the letters may lie, decide about each once, and record what is done."""
        wanted = set(which.ids)
        pending: list[Change] = []
        for name in self._queues_of(which):
            seen: set[tuple[str, int]] = set()

            def look(message: StoredMessage, seen: set[tuple[str, int]] = seen) -> Outgoing | Verdict:
                result.seen += 1
                letter = _read(message)
                if letter is None:
                    result.unreadable += 1
                    return Verdict.KEEP
                if (letter.job_id, letter.death) in seen:
                    result.merged += 1
                    return Verdict.DISCARD
                seen.add((letter.job_id, letter.death))
                if not which.match(summary_of(letter)):
                    return Verdict.KEEP
                if (decided := decide(letter)) is None:
                    return Verdict.KEEP
                result.job_ids.append(letter.job_id)
                verdict, change = decided
                pending.append(change)
                return verdict

            def settled(queue: str, seen: int, total: int) -> None:
                if len(pending) >= BATCH:
                    self._record(pending, result)
                if progress is not None:
                    progress(queue, seen, total)

            # A walk that breaks off leaves records behind that say dead: true of some, mended by `reindex`.
            self._walk(name, look, settled)
            self._record(pending, result)
        result.not_found = sorted(wanted - set(result.job_ids) - result.key_taken.keys())

    def _walk(
        self, name: str, look: Callable[[StoredMessage], Outgoing | Verdict], progress: Progress | None
    ) -> None:
        tell = None if progress is None else lambda seen, total: progress(name, seen, total)
        self._broker.driver.walk(name, look, progress=tell)

    def _queues(self, categories: Collection[str]) -> list[str]:
        if categories:
            return [queues.dead_queue(category) for category in sorted(categories)]
        return [name for name in self._broker.driver.queues() if name.endswith(".dead")]

    def _queues_of(self, which: Letters) -> list[str]:
        """The queues to walk over: those of the ids, where the store knows them all."""
        if which.categories or not which.ids:
            return self._queues(which.categories)
        categories = set()
        try:
            for job_id in which.ids:
                record = self._store().get(job_id)
                if record is None or not record.category:
                    return self._queues(())
                categories.add(record.category)
        except StoreUnavailable:
            return self._queues(())
        return self._queues(categories)

    # -- mending -----------------------------------------------------------------------------------------

    def _mend(self, job_id: str, payload: Mapping[str, Any]) -> _Mended:
        """The letter's message with other arguments, checked and signed."""
        letter = self.find(job_id)
        if letter is None:
            raise JobNotFound(f"there is no dead letter {job_id}")
        if letter.actor not in self._broker.actors:
            raise UnknownActor(letter.actor, self._broker.actors)
        message = self._trusted(letter)
        object.__setattr__(message, "queue_name", letter.queue)
        return _Mended(letter.actor, self._broker.prepare(message.copy(args=(), kwargs=dict(payload))))

    def _trusted(self, letter: DeadLetter) -> Message[Any]:
        """The message in a letter, if a worker would run it. It is about to be signed anew with all its
        options, so a forged letter must not get that far."""
        refused = f"the letter of job {letter.job_id} can't be mended"
        try:
            self._broker.verify(letter.queue, letter.original, letter.headers.signature)
            message = envelope.decode(letter.original, max_bytes=len(letter.original))
        except Unreadable as error:
            raise NotPossible(f"{refused}: {error}; it can only be discarded") from error
        if (message.message_id, message.actor_name) != (letter.job_id, letter.actor):
            raise NotPossible(
                f"{refused}: the message in it is of job {message.message_id} of '{message.actor_name}'; "
                "it can only be discarded"
            )
        return message

    # -- the index ---------------------------------------------------------------------------------------

    def _indexed(self, which: Letters) -> Iterable[LetterSummary]:
        store = self._store()
        if which.ids:
            records = [record for job_id in sorted(which.ids) if (record := store.get(job_id)) is not None]
            yield from self._matching(records, which)
            return
        query = Query(
            states=[State.DEAD],
            categories=list(which.categories),
            actors=list(which.actors),
            tags=list(which.tags),
            fingerprint=which.fingerprint,
            text=which.text,
        )
        yield from self._matching(records_of(store, query), which)

    @staticmethod
    def _matching(records: Iterable[Record], which: Letters) -> Iterable[LetterSummary]:
        for record in records:
            if record.state is State.DEAD and which.match(summary := summary_of_record(record)):
                yield summary

    def _record(self, changes: list[Change], result: WalkResult) -> None:
        """Write what was done into the index, and forget it; the result tells if the store couldn't take it."""
        try:
            if self._broker.store is not None:
                self._broker.store.write(changes)
        except StoreUnavailable as error:
            log.warning("the index of dead letters is behind: the store is away", error=str(error))
            result.recorded = False
        changes.clear()

    def _indexing(self, letter: DeadLetter) -> Change:
        last = letter.attempts[-1] if letter.attempts else None
        change = _changed(letter, State.DEAD, letter.headers.hop, letter.died_at)
        change.payload = self._masked_original(letter)
        change.finished_at = letter.died_at
        change.attempt = last.attempt if last is not None else letter.headers.attempt
        if last is not None:
            change.error_type, change.error = last.type, last.message
        change.traceback, change.fingerprint, change.reason = (
            letter.traceback,
            letter.fingerprint,
            letter.reason,
        )
        return change

    def _settle_stale(self, category: str, alive: set[str], before: float) -> int:
        """Records that say dead although the queue has no such letter any more: a walk that broke off
        had thrown it away."""
        query = Query(states=[State.DEAD], categories=[category])
        stale = [
            record
            for record in records_of(self._store(), query)
            if record.job_id not in alive and record.updated_at < before
        ]
        text = "discarded: its letter was no longer in the queue when that was indexed"
        self._store().write(
            [
                Change(
                    job_id=record.job_id,
                    order=order(record.order // 16, State.DISCARDED),
                    state=State.DISCARDED,
                    at=before,
                    finished_at=before,
                    reason=text,
                    event=text,
                )
                for record in stale
            ]
        )
        return len(stale)

    # -- the rest ----------------------------------------------------------------------------------------

    def _store(self) -> Store:
        if self._broker.store is None:
            raise StoreUnavailable("this broker has no store, so it has no index of dead letters")
        return self._broker.store

    def _cancelled(self) -> Collection[str]:
        try:
            control = self._broker.store.control() if self._broker.store is not None else None
        except StoreUnavailable:
            return ()
        return control.cancelled if control is not None else ()

    def _key_owner(self, letter: DeadLetter) -> str:
        """Take a unique job's key again for its new life; the id of the job that has it now, or '' if that can't
        be told. What a worker would not run takes no key: it could be that of another job."""
        try:
            self._broker.verify(letter.queue, letter.original, letter.headers.signature)
            message = envelope.decode(letter.original, max_bytes=len(letter.original))
            extras = envelope.extras_of(message.options)
        except (Unreadable, RecursionError):
            return letter.job_id
        if extras.unique is None or extras.unique_for is not None or message.message_id != letter.job_id:
            return letter.job_id
        try:
            # For a whole life, not a send: a walk may last. If it breaks off the record still says dead, and
            # the key of a dead job is taken over, a while after the announcement.
            if self._broker.store is not None:
                unique.announce_replay(self._broker.store, letter.job_id)
            return unique.hold(self._broker.store, message, extras, deadline=unique.TTL.total_seconds())
        except (NotQueued, StoreUnavailable) as error:
            log.warning("letter kept: its unique key can't be taken", job_id=letter.job_id, error=str(error))
            return ""

    def _forget_cancel(self, job_id: str) -> None:
        """A replayed job is wanted again, whatever was asked before it died."""
        try:
            if self._broker.store is not None:
                self._broker.store.forget_cancel(job_id)
        except StoreUnavailable as error:
            log.warning("cancellation not forgotten", job_id=job_id, error=str(error))

    def _masked_original(self, letter: DeadLetter) -> str:
        try:
            message = envelope.decode(letter.original, max_bytes=len(letter.original))
            if message.args:
                return masked_json({"args": message.args, "kwargs": message.kwargs})
            return self._masked(letter.actor, message.kwargs)
        except (Unreadable, RecursionError):
            return ""

    def _masked(self, actor_name: str, kwargs: Mapping[str, Any]) -> str:
        actor = self._broker.actors.get(actor_name)
        return actor.payload.masked(kwargs) if isinstance(actor, JobActor) else masked_json(kwargs)


@dataclass(frozen=True, slots=True)
class _Mended:
    """The message of a letter, with other arguments."""

    actor: str
    outgoing: Outgoing


def _changed(letter: DeadLetter, state: State, hop: int, at: float) -> Change:
    """What becomes known of a letter's job, with all that says what kind of job it is."""
    return Change(
        job_id=letter.job_id,
        order=order(hop, state),
        state=state,
        at=at,
        actor=letter.actor,
        category=queues.category_of(letter.queue),
        queue=letter.queue,
        priority=int(queues.priority_of(letter.queue)),
        tags=tuple(letter.tags) or None,
        enqueued_at=letter.enqueued_at or None,
    )


def _read(message: StoredMessage) -> DeadLetter | None:
    try:
        return dead_letter.decode(message.body, lies_in=message.queue)
    except Unreadable:
        return None


def _replayed(letter: DeadLetter, now: float, mended: Outgoing | None) -> Outgoing:
    """The message that a replay sends: a new life with all attempts, that remembers the errors."""
    old = letter.headers
    headers = Headers(
        hop=old.hop + 1,
        errors=list(letter.attempts),
        deaths=letter.death,
        replayed_at=now,
        signature=old.signature if mended is None else envelope.decode_headers(mended.headers).signature,
    )
    body = letter.original if mended is None else mended.body
    return Outgoing(letter.queue, body, letter.job_id, envelope.encode_headers(headers))


def _is_past_deadline(letter: DeadLetter, now: float) -> bool:
    """Whether the job says that it must not start any more."""
    try:
        body = letter.original
        expires = envelope.extras_of(envelope.read(body, max_bytes=len(body)).options).expires
    except (Unreadable, RecursionError):
        return False
    return expires is not None and now > expires


def _quarantined(message: StoredMessage, now: float) -> Outgoing:
    headers = Headers(
        state="quarantined", ready_at=now, reason=f"from {message.queue}: this is no dead letter"
    )
    return Outgoing(queues.QUARANTINE, message.body, "", envelope.encode_headers(headers))
