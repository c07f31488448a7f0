"""What a test sees of the jobs that wait."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from callboard import Priority, State
from callboard.actor import ActorDecorator
from callboard.errors import JobNotFound, UnknownActor
from callboard.testing import Jobs


def test_what_waits_is_what_came_back_from_json(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(category="billing", priority=Priority.HIGH)
    def remind(day: date, to: set[str]) -> None: ...

    sent = remind.using(tags=["late"]).send(day=date(2026, 7, 1), to={"ada"})
    (job,) = jobs.waiting
    assert (job.id, job.actor, job.queue, job.priority) == (sent.message_id, "remind", "billing.high", 2)
    assert job.kwargs == {"day": "2026-07-01", "to": ["ada"]}
    assert job.payload == {"day": date(2026, 7, 1), "to": {"ada"}}
    assert (job.due, job.tags, job.attempt, job.state) == (None, ("late",), 1, State.QUEUED)


def test_a_waiting_job_prints_as_the_call_it_stands_for(jobs: Jobs, note: Any) -> None:
    sent = note.using(delay=timedelta(hours=1), tags=["a"]).send("hello")
    until = (jobs.clock.now + timedelta(hours=1)).isoformat()
    assert repr(jobs.waiting) == (
        f"[<note(text='hello') in jobs.medium, scheduled until {until}, tags a, id {sent.message_id}>]"
    )


def test_jobs_wait_by_priority_and_then_by_the_time_they_are_due(jobs: Jobs, note: Any) -> None:
    note.using(delay=timedelta(hours=2)).send("fifth")
    note.using(priority=Priority.LOW).send("third")
    note.using(delay=timedelta(hours=1)).send("fourth")
    note.using(priority=Priority.HIGH).send("first")
    note.send("second")
    assert [job.kwargs["text"] for job in jobs.waiting] == ["first", "second", "third", "fourth", "fifth"]


def test_the_waiting_jobs_of_one_actor_are_found_by_it_and_by_its_name(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs")
    def write_down() -> None: ...

    note.send("a")
    sent = write_down.send()
    for key in (write_down, "write-down", "write_down"):
        assert [job.id for job in jobs.waiting_for(key)] == [sent.message_id]
    with pytest.raises(UnknownActor, match="did you mean 'write-down'"):
        jobs.waiting_for("write-dawn")


def test_a_job_that_was_not_sent_has_no_state(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound, match="'nope'"):
        jobs.state("nope")
