"""Jobs: search, show, cancel, and send back."""

from __future__ import annotations

from collections.abc import Mapping

from callboard.brokers.base import Broker
from callboard.errors import BrokerUnavailable, JobNotFound, NotPossible, StoreUnavailable
from callboard.operations.audit import Audit
from callboard.operations.dead_letters import DeadLetters
from callboard.operations.letters import Letters
from callboard.states import State
from callboard.store.base import Change, Page, Query, Record, Store

#: How many of the newest records are looked at to complete a part of an id.
_RESOLVE_AMONG = 5_000
_RESOLVE_LEAST = 6


class Jobs:
    """The jobs of a broker.

    Args:
        broker: Whose.
        audit: Where each act is written down.
        dead: Its dead letters.
    """

    def __init__(self, broker: Broker, audit: Audit, dead: DeadLetters) -> None:
        self._broker = broker
        self._audit = audit
        self._dead = dead

    def search(self, query: Query | None = None) -> Page:
        """A page of records, newest first.

        Raises:
            InvalidQuery
            StoreUnavailable
        """
        return self._store().search(query or Query())

    def counts(self) -> dict[State, int]:
        """How many records there are in each state.

        Raises:
            StoreUnavailable
        """
        return self._store().count_by_state()

    def show(self, job_id: str) -> Record:
        """A job's record, with its story.

        Raises:
            JobNotFound: The store has none; the message says whether the broker knows the job.
            StoreUnavailable
        """
        record = self._store().get(job_id)
        if record is None:
            raise JobNotFound(f"the store has no record of a job {job_id}{self._whereabouts(job_id)}")
        return record

    def resolve(self, text: str, *, whole: bool = False) -> str:
        """A job's id from a part of it: its beginning or its end, of at least six characters.

        What can't be completed comes back as it is: it may be an id that the store doesn't know.

        Args:
            text: The part.
            whole: It may be a whole id, however short it is, of a job that the store doesn't know.

        Raises:
            JobNotFound: Several jobs may be meant by it; or it is too short, and no job's whole id.
        """
        text = text.strip().removeprefix("…")
        try:
            store = self._store()
            if store.get(text) is not None:
                return text
            if len(text) < _RESOLVE_LEAST:
                if whole:
                    return text
                raise JobNotFound(
                    f"no job has the id '{text}': give six characters or more of an id, from its start or its end"
                )
            found: set[str] = set()
            query = Query(limit=1000)
            for _ in range(_RESOLVE_AMONG // query.limit):
                page = store.search(query)
                found |= {
                    r.job_id for r in page.records if r.job_id.startswith(text) or r.job_id.endswith(text)
                }
                if page.next is None:
                    break
                query.after = page.next
        except StoreUnavailable:
            return text
        if len(found) > 1:
            raise JobNotFound(
                f"'{text}' may be any of {len(found)} jobs, among them {', '.join(sorted(found)[:3])}"
            )
        return found.pop() if found else text

    def cancellations(self) -> Mapping[str, float]:
        """The jobs whose cancellation is asked for and hasn't come about yet, and when that was.

        Raises:
            StoreUnavailable
        """
        control = self._store().control()
        return control.cancelled if control is not None else {}

    def cancel(self, job_id: str, *, force: bool = False) -> Record | None:
        """Ask that a job never starts, or stops when it looks. To ask again changes nothing.

        Args:
            job_id: The job.
            force: Ask it of a job, too, that neither the store nor the broker knows.

        Returns:
            Its record, if there is one, as it was before.

        Raises:
            JobNotFound: Neither the store nor the broker knows it.
            NotPossible: It has ended.
            StoreUnavailable
        """
        store = self._store()
        record = store.get(job_id)
        if record is None and not force and not self._broker_has(job_id):
            raise JobNotFound(f"there is no job {job_id} that the store or the broker knows")
        if record is not None and record.state.is_end:
            advice = (
                f"; throw it away with: callboard dead discard {job_id}" if record.state is State.DEAD else ""
            )
            state = "has succeeded" if record.state is State.SUCCEEDED else f"is {record.state}"
            raise NotPossible(f"job {job_id} can't be cancelled: it {state}{advice}")
        if store.is_cancelled(job_id):
            return record
        now = self._broker.clock()
        store.cancel(job_id, at=now)
        if record is not None:
            store.write(
                [
                    Change(
                        job_id=job_id,
                        order=record.order - 1,  # a line of its story, that changes nothing of its state
                        state=record.state,
                        at=now,
                        event=f"cancellation asked for by {self._audit.who}",
                    )
                ]
            )
        self._audit.done("jobs.cancel", job_id)
        return record

    def ended_otherwise(self, job_id: str) -> Record | None:
        """The record of a job that ended before its cancellation reached it; the request is withdrawn then.

        Returns:
            None if it hasn't ended, or was cancelled.

        Raises:
            StoreUnavailable
        """
        store = self._store()
        record = store.get(job_id)
        if record is None or not record.state.is_end or record.state is State.CANCELLED:
            return None
        if store.is_cancelled(job_id):
            store.forget_cancel(job_id)
            store.write(
                [
                    Change(
                        job_id=job_id,
                        order=record.order - 1,
                        state=record.state,
                        at=self._broker.clock(),
                        event=f"its cancellation came too late: it was {record.state} by then",
                    )
                ]
            )
        return record

    def retry(self, job_id: str) -> None:
        """Run a dead job again.

        Raises:
            JobNotFound: No such job, or its dead letter is gone.
            NotPossible: It isn't dead: it waits or runs, or it has ended and its message is gone. Or it is unique,
                and another job has its key.
            BrokerUnavailable
        """
        try:
            record = self._store().get(job_id)
        except StoreUnavailable:
            record = None
        if record is not None and record.state is not State.DEAD:
            if not record.state.is_end:
                raise NotPossible(f"job {job_id} is {record.state}: it runs without being asked again")
            raise NotPossible(
                f"job {job_id} is {record.state}, and its message is gone; send a new job with 'callboard enqueue'"
            )
        result = self._dead.replay(Letters(ids=[job_id]))
        if job_id in result.key_taken:
            owner = result.key_taken[job_id]
            taken = (
                f"job {owner} has its unique key now"
                if owner
                else "the store can't tell who has its unique key"
            )
            raise NotPossible(f"job {job_id} stays dead: {taken}")
        if not result.job_ids:
            raise JobNotFound(f"no queue has a dead letter of a job {job_id}")

    def _store(self) -> Store:
        if self._broker.store is None:
            raise StoreUnavailable("this broker has no store, so nothing is recorded of jobs")
        return self._broker.store

    def _broker_has(self, job_id: str) -> bool:
        return self._broker.driver.locate(job_id) is not None

    def _whereabouts(self, job_id: str) -> str:
        try:
            location = self._broker.driver.locate(job_id)
        except BrokerUnavailable:
            return ""
        return f", but the broker has it in {location.queue}" if location is not None else ""
