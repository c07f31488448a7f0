"""A walk over queues of dead letters: each letter is decided about once, and what is done is written down.

Copies of a letter, which a crash leaves behind, go on the way. A walk that breaks off leaves records behind that
say dead: true of some letters, mended by `DeadLetters.reindex`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from callboard import dead_letter
from callboard.brokers.driver import Driver, Outgoing, StoredMessage, Verdict
from callboard.dead_letter import DeadLetter
from callboard.errors import Unreadable
from callboard.operations.records import BATCH
from callboard.store.base import Change

#: Called now and then on a long walk: the queue, how many letters were looked at, and how many there are.
Progress = Callable[[str, int, int], None]

#: What becomes of a letter, and what the index is told of it; None if the letter stays as it is.
Decide = Callable[[DeadLetter], tuple[Outgoing | Verdict, Change] | None]


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
        recorded: Whether the store has taken it all. If not, its index is behind: see `DeadLetters.reindex`.
        stale: Records that said dead and had no letter; they now say discarded (by `DeadLetters.reindex`).
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


class LetterWalk:
    """One walk, over one queue after the other.

    Args:
        driver: What has the queues.
        result: Where it is counted.
        decide: Asked once about each letter.
        write: Takes the changes of what is done, some at a time.
        unreadable: What becomes of a message that is no letter; by default it stays.
        progress: See `Progress`.
    """

    def __init__(
        self,
        driver: Driver,
        result: WalkResult,
        decide: Decide,
        *,
        write: Callable[[list[Change]], None],
        unreadable: Callable[[StoredMessage], Outgoing | Verdict] = lambda message: Verdict.KEEP,
        progress: Progress | None = None,
    ) -> None:
        self._driver = driver
        self._result = result
        self._decide = decide
        self._write = write
        self._unreadable = unreadable
        self._progress = progress
        self._pending: list[Change] = []
        self._seen: set[tuple[str, int]] = set()  # the deaths of jobs, in the queue that is walked over

    def over(self, queue: str) -> set[str]:
        """Walk over a queue. Returns the ids of all jobs that have a letter in it.

        Raises:
            BrokerUnavailable
        """
        self._seen = set()
        self._driver.walk(queue, self._look, progress=lambda seen, total: self._settled(queue, seen, total))
        self._flush()
        return {job_id for job_id, _ in self._seen}

    def _look(self, message: StoredMessage) -> Outgoing | Verdict:
        self._result.seen += 1
        letter = read(message)
        if letter is None:
            self._result.unreadable += 1
            return self._unreadable(message)
        if (letter.job_id, letter.death) in self._seen:
            self._result.merged += 1
            return Verdict.DISCARD
        self._seen.add((letter.job_id, letter.death))
        if (decided := self._decide(letter)) is None:
            return Verdict.KEEP
        verdict, change = decided
        self._result.job_ids.append(letter.job_id)
        self._pending.append(change)
        return verdict

    def _settled(self, queue: str, seen: int, total: int) -> None:
        if len(self._pending) >= BATCH:
            self._flush()
        if self._progress is not None:
            self._progress(queue, seen, total)

    def _flush(self) -> None:
        changes, self._pending = self._pending, []
        self._write(changes)


def read(message: StoredMessage) -> DeadLetter | None:
    """The letter that a message is, if it is one that may lie where it does."""
    try:
        return dead_letter.decode(message.body, lies_in=message.queue)
    except Unreadable:
        return None
