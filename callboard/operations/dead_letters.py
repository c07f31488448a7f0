"""Dead letters: looked up in the index, changed by a walk over the queue.

The queue `<category>.dead` is the truth, the store its index: `search` and `show` read the index. Every
change is one walk that looks at each letter once, so it finds letters that the index doesn't know, too, and
what it does is true whatever the index says. Copies of a letter (a crash leaves them) are merged on the way.
A store that was lost, or is behind, is put right by `reindex`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from itertools import islice
from typing import Any

from callboard import envelope, queues
from callboard.brokers.base import Broker
from callboard.brokers.driver import Outgoing, StoredMessage, Verdict
from callboard.dead_letter import DeadLetter
from callboard.envelope import Headers
from callboard.errors import JobNotFound, StoreUnavailable
from callboard.loggers import get_logger
from callboard.operations.audit import Audit
from callboard.operations.letter_index import LetterIndex, changed, entry_of, masked_original
from callboard.operations.letter_walk import Decide, LetterWalk, Progress, WalkResult, read
from callboard.operations.letters import (
    AUDITED_IDS,
    Cause,
    LetterDetails,
    Letters,
    LetterSummary,
    details_of,
    details_of_record,
    summary_of,
)
from callboard.operations.replay import Mended, Replay, mend
from callboard.states import State
from callboard.store.base import Change

log = get_logger(__name__)


class DeadLetters:
    """The dead letters of a broker.

    Args:
        broker: Whose.
        audit: Where each act is written down.
    """

    def __init__(self, broker: Broker, audit: Audit) -> None:
        self._broker = broker
        self._audit = audit
        self._index = LetterIndex(broker)

    # -- reading the index -------------------------------------------------------------------------------

    def search(self, which: Letters | None = None, *, limit: int = 50) -> list[LetterSummary]:
        """The newest letters that the index knows.

        Raises:
            StoreUnavailable
        """
        return list(islice(self._index.search(which or Letters()), limit))

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
        return max(0, sum(self.counts().values()) - self._index.count())

    def show(self, job_id: str) -> LetterDetails:
        """A letter with its story: from the store, or from its queue if the store doesn't have it.

        Raises:
            JobNotFound: It is no dead letter, as far as the store and the queues know.
            BrokerUnavailable: Needed, and away.
        """
        try:
            record = self._index.get(job_id)
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
        return details_of(letter, payload=masked_original(self._broker, letter))

    def find(self, job_id: str, *, progress: Progress | None = None) -> DeadLetter | None:
        """A letter by a walk over the queues, whatever the index says."""
        found: list[DeadLetter] = []

        def look(message: StoredMessage) -> Verdict:
            if (letter := read(message)) is not None and letter.job_id == job_id:
                found.append(letter)
            return Verdict.KEEP

        for name in self._queues(()):
            if self._broker.driver.counts([name])[name].ready:
                tell = None if progress is None else partial(progress, name)
                self._broker.driver.walk(name, look, progress=tell)
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
        result = WalkResult()
        replay = Replay(self._broker, result, who=self._audit.who, mended=mended)
        self._change(which, replay.decide, result, progress)
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
            change = changed(letter, State.DISCARDED, letter.headers.hop, now)
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
        walk = LetterWalk(
            self._broker.driver,
            result,
            lambda letter: (Verdict.KEEP, entry_of(self._broker, letter)),
            write=self._index.store.write,  # without a store, it ends here
            unreadable=lambda message: _quarantined(message, started),
            progress=progress,
        )
        for name in self._queues(categories):
            alive = walk.over(name)
            result.stale += self._index.settle_stale(name.removesuffix(".dead"), alive, started)
        self._audit.done(
            "dead.reindex",
            ",".join(sorted(categories)) or "all",
            count=len(result.job_ids),
            stale=result.stale,
            merged=result.merged,
            unreadable=result.unreadable,
        )
        return result

    # -- within ------------------------------------------------------------------------------------------

    def _mend(self, job_id: str, payload: Mapping[str, Any]) -> Mended:
        letter = self.find(job_id)
        if letter is None:
            raise JobNotFound(f"there is no dead letter {job_id}")
        return mend(self._broker, letter, payload)

    def _change(self, which: Letters, decide: Decide, result: WalkResult, progress: Progress | None) -> None:
        """Walk where the letters may lie, decide about each that is meant, and record what is done."""

        def decide_if_meant(letter: DeadLetter) -> tuple[Outgoing | Verdict, Change] | None:
            return decide(letter) if which.match(summary_of(letter)) else None

        walk = LetterWalk(
            self._broker.driver,
            result,
            decide_if_meant,
            write=lambda changes: self._record(changes, result),
            progress=progress,
        )
        for name in self._queues_of(which):
            walk.over(name)
        result.not_found = sorted(set(which.ids) - set(result.job_ids) - result.key_taken.keys())

    def _record(self, changes: list[Change], result: WalkResult) -> None:
        """Tell the index what was done; the result says if the store couldn't take it."""
        try:
            if self._broker.store is not None:
                self._broker.store.write(changes)
        except StoreUnavailable as error:
            log.warning("the index of dead letters is behind: the store is away", error=str(error))
            result.recorded = False

    def _queues(self, categories: Collection[str]) -> list[str]:
        if categories:
            return [queues.dead_queue(category) for category in sorted(categories)]
        return [name for name in self._broker.driver.queues() if name.endswith(".dead")]

    def _queues_of(self, which: Letters) -> list[str]:
        """The queues to walk over: those of the ids, where the store knows them all."""
        if which.categories or not which.ids:
            return self._queues(which.categories)
        try:
            return self._queues(self._index.categories_of(which.ids) or ())
        except StoreUnavailable:
            return self._queues(())


def _quarantined(message: StoredMessage, now: float) -> Outgoing:
    headers = Headers(
        state="quarantined", ready_at=now, reason=f"from {message.queue}: this is no dead letter"
    )
    return Outgoing(queues.QUARANTINE, message.body, "", envelope.encode_headers(headers))
