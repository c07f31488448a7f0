"""Dead letters as people see them: which are meant, and what each looks like, from itself or from the index."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from callboard import queues
from callboard.dead_letter import DeadLetter
from callboard.store.base import Record

#: How many ids an audit entry names.
AUDITED_IDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """Which letters: those for which every condition holds that is set. With none, all of them.

    `text` looks into the error and the reason, whatever the case; `since` (at or after) and `until` (before)
    go by the time of death.
    """

    ids: Collection[str] = ()
    categories: Collection[str] = ()
    actors: Collection[str] = ()
    fingerprint: str | None = None
    tags: Collection[str] = ()
    text: str | None = None
    since: float | None = None
    until: float | None = None

    def match(self, letter: LetterSummary) -> bool:
        """Whether a letter is one of them."""
        return (
            (not self.ids or letter.job_id in self.ids)
            and (not self.categories or letter.category in self.categories)
            and (not self.actors or letter.actor in self.actors)
            and (self.fingerprint is None or letter.fingerprint == self.fingerprint)
            and set(self.tags) <= set(letter.tags)
            and (self.text is None or self.text.lower() in f"{letter.error}\n{letter.reason}".lower())
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at < self.until)
        )

    def as_json(self) -> dict[str, Any]:
        """The conditions that are set; of many ids the first hundred."""
        conditions: dict[str, Any] = {}
        for name in ("ids", "categories", "actors", "tags"):
            if values := list(getattr(self, name)):
                conditions[name] = sorted(values)[:AUDITED_IDS]
        for name in ("fingerprint", "text", "since", "until"):
            if (value := getattr(self, name)) is not None:
                conditions[name] = value
        return conditions

    def __str__(self) -> str:
        conditions = self.as_json()
        if set(conditions) == {"ids"} and len(self.ids) == 1:
            return next(iter(self.ids))
        texts = (f"{k}={','.join(v) if isinstance(v, list) else v}" for k, v in conditions.items())
        return " ".join(texts) or "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterSummary:
    """A letter in a line."""

    job_id: str
    actor: str
    category: str
    queue: str  # where a replay goes
    died_at: float
    attempts: int
    reason: str
    error: str
    fingerprint: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryLine:
    """A line of how a job came to be dead."""

    at: float
    text: str
    attempt: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterDetails:
    """A letter with its whole story. `payload` is JSON with its secrets masked."""

    summary: LetterSummary
    payload: str
    traceback: str
    enqueued_at: float | None
    story: tuple[StoryLine, ...]
    from_broker: bool = False  # the store didn't know it, so its queue was walked


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The letters that have a fingerprint in common."""

    fingerprint: str
    actor: str
    error: str
    count: int
    first_at: float
    last_at: float


def summary_of(letter: DeadLetter) -> LetterSummary:
    """A letter in a line, from itself."""
    return LetterSummary(
        job_id=letter.job_id,
        actor=letter.actor,
        category=queues.category_of(letter.queue),
        queue=letter.queue,
        died_at=letter.died_at,
        attempts=letter.attempts[-1].attempt if letter.attempts else letter.headers.attempt,
        reason=letter.reason,
        error=letter.error,
        fingerprint=letter.fingerprint,
        tags=tuple(letter.tags),
    )


def summary_of_record(record: Record) -> LetterSummary:
    """A letter in a line, from the index."""
    error = f"{record.error_type}: {record.error}" if record.error_type else record.error
    return LetterSummary(
        job_id=record.job_id,
        actor=record.actor,
        category=record.category,
        queue=record.queue,
        died_at=record.finished_at or record.updated_at,
        attempts=record.attempt,
        reason=record.reason,
        error=error or record.reason,
        fingerprint=record.fingerprint,
        tags=record.tags,
    )


def details_of(letter: DeadLetter, *, payload: str) -> LetterDetails:
    """A letter with its whole story, from itself; its payload masked by the caller."""
    return LetterDetails(
        summary=summary_of(letter),
        payload=payload,
        traceback=letter.traceback,
        enqueued_at=letter.enqueued_at or None,
        story=tuple(
            StoryLine(
                at=failed.at,
                text=f"attempt {failed.attempt} failed: {failed.type}: {failed.message}",
                attempt=failed.attempt,
                worker=failed.worker,
            )
            for failed in letter.attempts
        ),
        from_broker=True,
    )


def details_of_record(record: Record) -> LetterDetails:
    """A letter with its whole story, from the index."""
    return LetterDetails(
        summary=summary_of_record(record),
        payload=record.payload,
        traceback=record.traceback,
        enqueued_at=record.enqueued_at,
        story=tuple(
            StoryLine(at=event.at, text=event.text, attempt=event.attempt, worker=event.worker)
            for event in record.events
        ),
    )
