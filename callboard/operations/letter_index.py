"""The index of dead letters: the records of the store that say dead.

It may be behind the queues, which are the truth: see `DeadLetters.reindex`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from callboard import envelope, queues
from callboard.actor import JobActor
from callboard.brokers.base import Broker
from callboard.dead_letter import DeadLetter
from callboard.errors import StoreUnavailable, Unreadable
from callboard.operations.letters import Letters, LetterSummary, summary_of_record
from callboard.operations.records import records_of
from callboard.payload import masked_json
from callboard.states import State, order
from callboard.store.base import Change, Query, Record, Store


class LetterIndex:
    """What the store of a broker knows of its dead letters. Every method raises `StoreUnavailable`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def search(self, which: Letters) -> Iterator[LetterSummary]:
        """The letters that are meant; the newest first, unless they are asked for by their ids."""
        for record in self._records(which):
            if record.state is State.DEAD and which.match(summary := summary_of_record(record)):
                yield summary

    def _records(self, which: Letters) -> Iterable[Record]:
        if which.ids:
            return [record for job_id in sorted(which.ids) if (record := self.get(job_id)) is not None]
        query = Query(
            states=[State.DEAD],
            categories=list(which.categories),
            actors=list(which.actors),
            tags=list(which.tags),
            fingerprint=which.fingerprint,
            text=which.text,
        )
        return records_of(self.store, query)

    def get(self, job_id: str) -> Record | None:
        """The record of a job, dead or not."""
        return self.store.get(job_id)

    def count(self) -> int:
        """How many letters it knows."""
        return self.store.count_by_state().get(State.DEAD, 0)

    def categories_of(self, job_ids: Iterable[str]) -> set[str] | None:
        """Where the letters of these jobs lie; None if it doesn't know all of them."""
        categories = set()
        for job_id in job_ids:
            record = self.get(job_id)
            if record is None or not record.category:
                return None
            categories.add(record.category)
        return categories

    def settle_stale(self, category: str, alive: Collection[str], before: float) -> int:
        """Settle records that say dead although the queue has no such letter any more: a walk that broke off
        had thrown it away.

        Args:
            category: Whose queue was read.
            alive: The jobs that have a letter in it.
            before: What was recorded since then isn't judged by that.

        Returns:
            How many there were.
        """
        query = Query(states=[State.DEAD], categories=[category])
        stale = [
            record
            for record in records_of(self.store, query)
            if record.job_id not in alive and record.updated_at < before
        ]
        text = "discarded: its letter was no longer in the queue when that was indexed"
        self.store.write(
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

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            StoreUnavailable: There is none.
        """
        if self._broker.store is None:
            raise StoreUnavailable("this broker has no store, so it has no index of dead letters")
        return self._broker.store


def entry_of(broker: Broker, letter: DeadLetter) -> Change:
    """What the index is told of a letter that lies in its queue."""
    last = letter.attempts[-1] if letter.attempts else None
    change = changed(letter, State.DEAD, letter.headers.hop, letter.died_at)
    change.payload = masked_original(broker, letter)
    change.finished_at = letter.died_at
    change.attempt = last.attempt if last is not None else letter.headers.attempt
    if last is not None:
        change.error_type, change.error = last.type, last.message
    change.traceback, change.fingerprint, change.reason = letter.traceback, letter.fingerprint, letter.reason
    return change


def changed(letter: DeadLetter, state: State, hop: int, at: float) -> Change:
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


def masked_original(broker: Broker, letter: DeadLetter) -> str:
    """The arguments of a letter's job as JSON, with their secrets masked; '' if they can't be read."""
    try:
        message = envelope.decode(letter.original, max_bytes=len(letter.original))
        if message.args:
            return masked_json({"args": message.args, "kwargs": message.kwargs})
        return masked(broker, letter.actor, message.kwargs)
    except (Unreadable, RecursionError):
        return ""


def masked(broker: Broker, actor_name: str, kwargs: Mapping[str, Any]) -> str:
    """Arguments as JSON, with what their actor calls secret masked."""
    actor = broker.actors.get(actor_name)
    return actor.payload.masked(kwargs) if isinstance(actor, JobActor) else masked_json(kwargs)
