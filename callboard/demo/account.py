"""The account at the end: for each kind of job how many, how often, how long, and whether any is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from callboard.demo.knowledge import Knowledge
from callboard.operations import Operations
from callboard.operations.why import can_locate
from callboard.queues import Priority
from callboard.states import State
from callboard.store.base import Record

#: The width in characters from which on the table has all its columns.
_WIDE = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians and 99th percentiles, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOfJob:
    """A line of the table.

    Attributes:
        attempts: Counted runs, of all its jobs.
        wait: From when a job could have started to when its last run did.
        run: How long that run took.
    """

    actor: str
    count: int
    attempts: int
    wait: Timing
    run: Timing


@dataclass(slots=True, kw_only=True)
class Account:
    """What came of everything that was sent.

    Attributes:
        done: Jobs that say that they succeeded and have brought about what they should.
        unfinished: Jobs that the broker still has.
        lost: Jobs that are neither done nor anywhere.
        left: Messages that the broker has at the end, dead letters included.
        faults: What is wrong with which job.
    """

    sent: int
    done: int
    unfinished: int
    lost: int
    left: int
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every job that was sent is done, and nothing is left behind."""
        return self.sent > 0 and self.done == self.sent and not self.lost and not self.left

    def __str__(self) -> str:
        parts = [f"sent {self.sent}", f"done {self.done}", f"lost {self.lost}"]
        if self.unfinished:
            parts.append(f"unfinished {self.unfinished}")
        if self.left and not self.unfinished:
            parts.append(f"left in queues {self.left}")
        return ", ".join(parts)


def take_account(knowledge: Knowledge, operations: Operations) -> Account:
    """Count, from what the jobs brought about, and from what the broker still has."""
    knowledge.look()
    knowledge.prove_rest()
    left = knowledge.messages_left()
    missing = [job_id for job_id in knowledge.sent if job_id not in knowledge.proved]
    lost = [job_id for job_id in missing if _is_lost(knowledge, operations, job_id, left)]
    return Account(
        sent=len(knowledge.sent),
        done=len(knowledge.sent) - len(missing),
        unfinished=len(missing) - len(lost),
        lost=len(lost),
        left=left,
        faults=[
            f"{job_id}, {knowledge.sent[job_id].about}: {knowledge.faults[job_id]}. "
            f"{operations.why(job_id).sentence}"
            for job_id in missing
        ],
    )


def _is_lost(knowledge: Knowledge, operations: Operations, job_id: str, left: int) -> bool:
    """Whether a job that isn't done is nowhere, as far as the broker can tell."""
    if knowledge.state(job_id) is State.DEAD:
        return False
    driver = operations.broker.driver
    if can_locate(driver):
        return driver.locate(job_id) is None
    # It may still wait among the delayed, which not every broker can count.
    return not left and knowledge.state(job_id) not in (State.RETRYING, State.SCHEDULED, State.PARKED)


def kinds_of_jobs(knowledge: Knowledge, actors: Iterable[str]) -> list[KindOfJob]:
    """The lines of the table."""
    lines = []
    for actor in actors:
        ids = knowledge.ids(actor)
        records = [knowledge.records[job_id] for job_id in ids if job_id in knowledge.records]
        lines.append(
            KindOfJob(
                actor=actor,
                count=len(ids),
                attempts=sum(map(knowledge.attempts, ids)),
                wait=_timing([wait for record in records if (wait := _wait(knowledge, record)) is not None]),
                run=_timing([run for record in records if (run := _run(record)) is not None]),
            )
        )
    return lines


def waits_by_priority(knowledge: Knowledge) -> str:
    """The median wait of each priority's jobs."""
    waits: dict[Priority, list[float]] = {priority: [] for priority in Priority}
    for job_id, job in knowledge.sent.items():
        record = knowledge.records.get(job_id)
        if record is not None and (wait := _wait(knowledge, record)) is not None:
            waits[job.priority].append(wait)
    return ", ".join(f"{p.word} {_time(_percentile(found, 50))}" for p, found in waits.items())


def print_table(console: Console, lines: Iterable[KindOfJob], outputs: dict[str, str]) -> None:
    """The table, and, where it fits, where each kind's output lies."""
    wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 3 if wide else 2, 0, 0), header_style="bold")
    table.add_column("JOB", no_wrap=True)
    for title in ("COUNT", "ATTEMPTS"):
        table.add_column(title, justify="right")
    for title in ("WAIT p50", "p99", "RUN p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    if wide:
        table.add_column("OUTPUT", overflow="fold")
    for line in lines:
        times = [_time(seconds) for timing in (line.wait, line.run) for seconds in (timing.p50, timing.p99)]
        output = [outputs[line.actor]] if wide else []
        table.add_row(line.actor, str(line.count), str(line.attempts), *times, *output)
    console.print(table)


def _wait(knowledge: Knowledge, record: Record) -> float | None:
    if record.started_at is None or record.enqueued_at is None:
        return None
    could_start = max(record.enqueued_at, record.due_at or 0.0, knowledge.died_at(record.job_id))
    return max(0.0, record.started_at - could_start)


def _run(record: Record) -> float | None:
    if record.started_at is None or record.finished_at is None:
        return None
    return max(0.0, record.finished_at - record.started_at)


def _timing(seconds: Sequence[float]) -> Timing:
    return Timing(p50=_percentile(seconds, 50), p99=_percentile(seconds, 99))


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return "< 1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank: a value that was measured, not one in between."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
