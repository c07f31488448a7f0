"""What is known of the demo's jobs from one moment to the next: their records, and which are proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from callboard.demo.programme import PlannedJob
from callboard.operations import Operations
from callboard.states import State
from callboard.store.base import Query, Record

_PAGE = 1000


class Knowledge:
    """The jobs that were sent, and what is known of each.

    Attributes:
        sent: The plan of every job whose `send` has returned, by its id.
        records: What the store knows of them.
        faults: What is wrong with those that say they succeeded and can't prove it.
        proved: Those that brought about what they should.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._prover = ThreadPoolExecutor(1, thread_name_prefix="demo-prover")
        self._proofs: dict[str, Future[str]] = {}
        self._attempts_before: dict[tuple[str, float], int] = {}
        self.sent: dict[str, PlannedJob] = {}
        self.records: dict[str, Record] = {}
        self.faults: dict[str, str] = {}
        self.proved: set[str] = set()

    def look(self) -> None:
        """Read the records, and have those jobs prove themselves that have ended since the last look."""
        for record in self._search():
            self.records[record.job_id] = record
            if record.state is State.DEAD and record.finished_at is not None:
                self._attempts_before[record.job_id, record.finished_at] = record.attempt
            if record.state is State.SUCCEEDED:
                self._prove(record.job_id)
        for job_id in [job_id for job_id, proof in self._proofs.items() if proof.done()]:
            self._note(job_id, self._proofs.pop(job_id).result())

    def prove_rest(self) -> None:
        """Have every job prove itself now, whatever its record says. For when the broker has nothing any more.

        Records are written behind the jobs: that of one that ended in the last moments before a kill -9 may say
        for ever that it waits or runs.
        """
        for job_id in self.sent:
            self._prove(job_id)
        for job_id in list(self._proofs):
            self._note(job_id, self._proofs.pop(job_id).result())

    def close(self) -> None:
        """Prove nothing any more."""
        self._prover.shutdown(cancel_futures=True)

    def state(self, job_id: str) -> State | None:
        """A job's state, or None where nothing is known yet."""
        record = self.records.get(job_id)
        return record.state if record is not None else None

    def attempts(self, job_id: str) -> int:
        """How many counted runs a job has had, those before its death included."""
        record = self.records.get(job_id)
        if record is None:
            return 0
        before = sum(count for (dead, _), count in self._attempts_before.items() if dead == job_id)
        return before if record.state is State.DEAD else before + record.attempt

    def died_at(self, job_id: str) -> float:
        """When a job died last, in seconds since the epoch; 0 if it never did."""
        return max((at for dead, at in self._attempts_before if dead == job_id), default=0.0)

    def ids(self, actor: str) -> list[str]:
        """The jobs of an actor, in the order they were sent."""
        return [job_id for job_id, job in self.sent.items() if job.actor == actor]

    def running(self) -> dict[int, list[Record]]:
        """What each worker process runs, by its pid; those that died too, until their jobs run again."""
        found: dict[int, list[Record]] = {}
        for record in self.records.values():
            if record.state is State.RUNNING:
                found.setdefault(process_of(record), []).append(record)
        return found

    def finished_by(self) -> Counter[int]:
        """How many jobs each worker process has finished, by its pid."""
        return Counter(
            process_of(record) for record in self.records.values() if record.state is State.SUCCEEDED
        )

    @property
    def all_proved(self) -> bool:
        """Whether every job that was sent has brought about what it should."""
        return len(self.proved) == len(self.sent)

    def messages_left(self) -> int:
        """How many messages the broker has, in whatever state, as far as it can tell."""
        return sum(
            status.ready + (status.claimed or 0) + (status.delayed or 0)
            for status in self._operations.queues.search()
        )

    def signature(self) -> int:
        """A number that changes when something happens."""
        return hash(
            tuple(
                (record.state, record.attempt, record.started_at, record.progress_note)
                for record in self.records.values()
            )
        )

    def _prove(self, job_id: str) -> None:
        """Begin a proof; it may take a second, in which the story goes on."""
        if job_id in self.sent and job_id not in self.proved and job_id not in self._proofs:
            self._proofs[job_id] = self._prover.submit(self.sent[job_id].proof, job_id)

    def _note(self, job_id: str, fault: str) -> None:
        if fault:
            self.faults[job_id] = fault
        else:
            self.faults.pop(job_id, None)
            self.proved.add(job_id)

    def _search(self) -> Iterator[Record]:
        after: str | None = None
        while True:
            page = self._operations.jobs.search(Query(limit=_PAGE, after=after))
            yield from page.records
            if (after := page.next) is None:
                return


def process_of(record: Record) -> int:
    """The pid of the process that ran a job last, from its name, host:pid:suffix."""
    return int(record.worker.rsplit(":", 2)[1]) if record.worker.count(":") >= 2 else 0
