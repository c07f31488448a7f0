"""A job runs twice, as if the worker had been killed before its ack."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from callboard import Priority, State, current_job
from callboard.actor import ActorDecorator
from callboard.testing import JobDied, Jobs
from tests.unit.testing.conftest import NoInvoice, SendEmail


def test_a_job_that_runs_twice_has_the_same_id_and_number(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs", retries=0)
    def who_am_i(items: list[int]) -> tuple[str, int, list[int]]:
        items.append(0)
        return current_job().id, current_job().attempt, items

    waiting = note.send("left alone")
    first, second = jobs.run_twice(who_am_i.using(priority=Priority.LOW, delay=timedelta(hours=1)), [1])
    assert first == second
    assert first[1:] == (1, [1, 0])
    assert jobs.state(first[0]) is State.SUCCEEDED
    assert [job.id for job in jobs.waiting] == [waiting.message_id]


def test_a_job_that_is_not_safe_to_run_twice_is_found_out(
    jobs: Jobs, actor: ActorDecorator, seen: list[Any]
) -> None:
    @actor(category="jobs")
    def pay(invoice_id: int) -> None:
        if invoice_id in seen:
            raise NoInvoice("paid already")
        seen.append(invoice_id)

    with pytest.raises(NoInvoice, match="paid already"):
        jobs.run_twice(pay, 42)


def test_a_model_can_be_given_whole_or_by_its_fields(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(SendEmail, category="jobs")
    def count(email: SendEmail) -> int:
        return len(email.to)

    assert jobs.run_twice(count, SendEmail(to=["ada"])) == (1, 1)
    assert jobs.run_twice(count, to=["ada", "bob"]) == (2, 2)


def test_what_a_run_sends_is_sent_twice_when_it_runs_twice(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs")
    def lead() -> None:
        note.send("follow")

    jobs.run_twice(lead)
    assert len(jobs.waiting_for(note)) == 2


def test_a_job_that_does_not_run_did_not_run_twice(jobs: Jobs, note: Any) -> None:
    expired = note.using(expires=jobs.clock.now - timedelta(seconds=1))
    with pytest.raises(JobDied, match="was to succeed, and is expired"):
        jobs.run_twice(expired, "a")
