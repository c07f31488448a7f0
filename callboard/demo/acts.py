"""What happens in the demo beside the work: each act waits for its moment, does something, and tells of it.

An act is a generator that the demo resumes every tenth of a second; it yields while it waits. What it says is
what was measured, not what was hoped for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from callboard.actor import JobActor
from callboard.demo.failures import DemoNotPossible
from callboard.demo.folder import DemoFolder
from callboard.demo.knowledge import Knowledge
from callboard.demo.programme import LATE_PHOTOGRAPH, STRANGER, PlannedJob, Programme
from callboard.demo.worker import THREADS, Death, WorkerProcesses
from callboard.errors import JobNotFound
from callboard.operations import Letters, Operations
from callboard.operations.moments import span
from callboard.states import State
from callboard.store.base import Event

Act = Iterator[None]


class Say(Protocol):
    """Tells a sentence of the story."""

    def __call__(self, text: str, style: str = "", /) -> None: ...


_SENT_AT_ONCE = 20  # between two looks at what goes on
_KILL_AFTER = 0.25  # of all jobs are proved
_PATIENCE_FOR_BUSY = 4.0  # seconds in which we wait for a process that is busy in all its threads
_OUT_OF_REACH = 0.5  # seconds


@dataclass(slots=True)
class Stage:
    """What the acts have at hand.

    Attributes:
        all_sent: Whether it has been told that all jobs are sent.
        run_again: The jobs whose run a kill cut short, and that ran again.
    """

    folder: DemoFolder
    programme: Programme
    actors: Mapping[str, JobActor[..., Any]]
    operations: Operations
    worker: WorkerProcesses
    knowledge: Knowledge
    photographs: dict[str, Path]
    say: Say
    all_sent: bool = False
    run_again: set[str] = field(default_factory=set)

    def id_of(self, job: PlannedJob) -> str | None:
        """The id of a planned job, once it is sent."""
        return next((job_id for job_id, sent in self.knowledge.sent.items() if sent is job), None)


def send_all(stage: Stage) -> Act:
    """Send every job; each is safe when its `send` returns."""
    began = time.monotonic()
    for job in stage.programme.jobs:
        message = stage.actors[job.actor].using(priority=job.priority).send(**job.payload)
        stage.knowledge.sent[message.message_id] = job
        if len(stage.knowledge.sent) % _SENT_AT_ONCE == 0:
            yield
    took = time.monotonic() - began
    stage.say(f"sent {len(stage.knowledge.sent)} jobs of four kinds, at four priorities, in {span(took)}")
    stage.all_sent = True


def start_workers(stage: Stage) -> Act:
    """Tell when the processes are there."""
    while len(stage.worker.pids) < 2:
        yield
    pids = " and ".join(map(str, sorted(stage.worker.pids)))
    stage.say(f"a worker is up: processes {pids}, {THREADS} threads each")


def kill_a_worker(stage: Stage) -> Act:
    """kill -9 a process in the midst of several jobs, and follow them to their ends."""
    while len(stage.knowledge.proved) < _KILL_AFTER * len(stage.programme.jobs):
        yield
    while True:
        victim = yield from _await_busy(stage)
        if victim is None:
            stage.say("every job was done before a worker could be killed")
            return
        killed_at = time.time()
        stage.worker.kill(victim)
        stage.say(f"kill -9 {victim}", "bold yellow")
        while victim not in stage.worker.replacements:
            yield
        death = stage.worker.deaths[victim]
        if death.running:
            break
        stage.say(f"worker {victim} was between two jobs")
    while not _have_ended(stage, death.running):
        yield
    replaced_at = stage.worker.replacements[victim].at
    stage.say(_tell_of_kill(stage, death, killed_at, replaced_at), "bold yellow")


def _await_busy(stage: Stage) -> Generator[None, None, int | None]:
    """Wait for a process with nearly all its threads busy, or, after a while, with some.

    Returns its pid, or None when all jobs are done. The mail that is put off isn't to be hit: a run that is cut
    short isn't counted, and it is to fail twice.
    """
    began = time.monotonic()
    while True:
        running = {pid: jobs for pid, jobs in stage.knowledge.running().items() if pid in stage.worker.pids}
        waited = time.monotonic() - began
        wanted = THREADS - 1 if waited < _PATIENCE_FOR_BUSY else 1
        victim = max(running, key=lambda pid: len(running[pid]), default=None)
        if victim is not None and len(running[victim]) >= wanted and _is_out_of_reach(stage, waited):
            return victim
        if stage.knowledge.all_proved:
            return None
        yield


def _is_out_of_reach(stage: Stage, waited: float) -> bool:
    """Whether the mail that is put off waits in the broker, has gone out, or is late to start at all."""
    record = stage.knowledge.records.get(stage.id_of(stage.programme.put_off) or "")
    if record is None:
        return False
    if record.state is State.QUEUED and waited >= _PATIENCE_FOR_BUSY / 2:
        return True
    is_far = (record.due_at or 0.0) > time.time() + _OUT_OF_REACH
    return record.state is State.SUCCEEDED or (record.state is State.RETRYING and is_far)


def _have_ended(stage: Stage, job_ids: Iterable[str]) -> bool:
    records = [stage.knowledge.records.get(job_id) for job_id in job_ids]
    if all(record is not None and record.state.is_end for record in records):
        return True
    # The end of one that finished just before the kill is recorded nowhere; but the broker has it no more.
    return stage.knowledge.all_proved and not stage.knowledge.messages_left()


def _tell_of_kill(stage: Stage, death: Death, killed_at: float, replaced_at: float) -> str:
    again = {
        job_id
        for job_id in death.running
        if (record := stage.knowledge.records.get(job_id)) is not None
        and (record.started_at or 0.0) > killed_at
    }
    stage.run_again |= again
    count = len(death.running)
    jobs = "1 job" if count == 1 else f"{count} jobs"
    if len(again) == count:
        fate = "it ran again" if count == 1 else f"all {count} ran again"
    else:
        fate = f"{len(again)} ran again, and {count - len(again)} had just finished"
    return (
        f"killed worker {death.pid} while it ran {jobs}; replaced in {span(replaced_at - killed_at)}; {fate}"
    )


def put_a_mail_off(stage: Stage) -> Act:
    """Follow the mail that its server puts off twice."""
    while (job_id := stage.id_of(stage.programme.put_off)) is None:
        yield
    told = 0
    while True:
        record = stage.knowledge.records.get(job_id)
        failures = [event for event in _story(stage, job_id) if event.state is State.RETRYING]
        for failure in failures[told:]:
            told += 1
            stage.say(f"attempt {failure.attempt} of the mail to {STRANGER}: {_reply(failure.text)}")
        if record is not None and record.state is State.SUCCEEDED:
            break
        yield
    took = span((record.finished_at or 0.0) - (record.enqueued_at or 0.0))
    times = {1: "once", 2: "twice"}.get(told, f"{told} times")
    stage.say(
        f"the mail to {STRANGER} failed {times}, and went out at attempt {record.attempt}, after {took}"
    )


def _story(stage: Stage, job_id: str) -> tuple[Event, ...]:
    try:
        return stage.operations.jobs.show(job_id).events
    except JobNotFound:  # not written yet
        return ()


def _reply(text: str) -> str:
    """What the mail server said, out of the whole reason."""
    _, _, reply = text.partition(f"{STRANGER}: ")
    return reply.partition(";")[0] or text


def mend_a_dead_letter(stage: Stage) -> Act:
    """Look at the picture that died, put its photograph in place, and replay it."""
    while (job_id := stage.id_of(stage.programme.unlucky)) is None:
        yield
    while not stage.all_sent or stage.knowledge.state(job_id) is not State.DEAD:
        yield
    letter = stage.operations.dead.show(job_id)
    stage.say(f"dead letter: {letter.summary.actor}: {letter.summary.error.partition(' in /')[0]}")
    missing = stage.folder.storage / LATE_PHOTOGRAPH
    missing.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stage.photographs[missing.name], missing)
    replayed = stage.operations.dead.replay(Letters(ids=[job_id]))
    if replayed.job_ids != [job_id]:
        raise DemoNotPossible(f"the dead letter {job_id} couldn't be replayed: {replayed}")
    stage.say("mended: put the photograph in its place, and replayed the dead letter")
    while job_id not in stage.knowledge.proved:
        yield
    stage.say(f"the replayed job has made its picture of {missing.name}, so no dead letter is left")


ACTS: tuple[Callable[[Stage], Act], ...] = (
    send_all,
    start_workers,
    kill_a_worker,
    put_a_mail_off,
    mend_a_dead_letter,
)
