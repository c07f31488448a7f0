"""Jobs: finding, cancelling, retrying."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from callboard import State
from callboard.errors import JobNotFound, NotPossible
from callboard.operations import Operations
from callboard.store import open_store
from callboard.store.base import Query
from callboard.testing import Jobs


def test_jobs_are_searched_and_counted(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    deliver.using(tags=["a"]).send(to="x")
    jobs.drain()
    waiting = deliver.send(to="y").message_id

    (found,) = operations.jobs.search(Query(states=[State.QUEUED])).records
    assert found.job_id == waiting
    counts = operations.jobs.counts()
    assert (counts[State.QUEUED], counts[State.SUCCEEDED]) == (1, 1)


def test_a_job_that_only_the_broker_knows_is_told(
    operations: Operations, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))

    with pytest.raises(JobNotFound, match=r"but the broker has it in post\.high"):
        Operations(jobs.broker).jobs.show(job_id)


def test_part_of_an_id_is_completed(operations: Operations, deliver: Any) -> None:
    job_id = deliver.send(to="x").message_id
    deliver.using(job_id="nightly:2025-11-21").send(to="x")
    deliver.using(job_id="nightly:2025-11-22").send(to="x")

    assert operations.jobs.resolve(job_id) == job_id
    assert operations.jobs.resolve(job_id[-8:]) == job_id
    assert operations.jobs.resolve("…" + job_id[-12:]) == job_id
    assert operations.jobs.resolve("nightly:2025-11-22") == "nightly:2025-11-22"
    assert operations.jobs.resolve("unheard-of") == "unheard-of"
    assert operations.jobs.resolve("a1", whole=True) == "a1"
    with pytest.raises(JobNotFound, match="give six characters or more of an id, from its start or its end"):
        operations.jobs.resolve(job_id[:5])
    with pytest.raises(JobNotFound, match="may be any of 2 jobs"):
        operations.jobs.resolve("nightly")


def test_a_cancelled_job_never_starts(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    queued_at = jobs.record(job_id).updated_at
    jobs.clock.advance(timedelta(seconds=3))

    operations.jobs.cancel(job_id)

    assert jobs.record(job_id).updated_at == queued_at  # it is as long in its queue as before
    assert jobs.drain().cancelled == 1
    texts = [event.text for event in jobs.record(job_id).events]
    assert "cancellation asked for by ada" in texts
    assert operations.audit_log()[0].action == "jobs.cancel"


def test_to_cancel_again_changes_nothing(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    operations.jobs.cancel(job_id)
    asked, story = operations.jobs.cancellations()[job_id], jobs.record(job_id).events
    jobs.clock.advance(timedelta(seconds=3))

    operations.jobs.cancel(job_id)

    assert operations.jobs.cancellations()[job_id] == asked
    assert jobs.record(job_id).events == story
    assert len(operations.audit_log()) == 1


def test_what_has_ended_cannot_be_cancelled(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    jobs.drain()

    with pytest.raises(NotPossible, match="it has succeeded"):
        operations.jobs.cancel(job_id)


def test_a_dead_job_is_discarded_and_not_cancelled(
    operations: Operations, deliver: Any, jobs: Jobs, broken: set[str]
) -> None:
    broken.add("x")
    job_id = deliver.send(to="x").message_id
    jobs.drain(fail=False)

    with pytest.raises(NotPossible, match=f"callboard dead discard {job_id}"):
        operations.jobs.cancel(job_id)


def test_an_unknown_job_is_cancelled_only_by_force(operations: Operations, jobs: Jobs) -> None:
    with pytest.raises(JobNotFound):
        operations.jobs.cancel("nobody")

    operations.jobs.cancel("nobody", force=True)

    assert jobs.broker.store is not None
    assert jobs.broker.store.is_cancelled("nobody")


def test_retry_runs_a_dead_job_and_no_other(
    operations: Operations, deliver: Any, jobs: Jobs, broken: set[str]
) -> None:
    broken.add("x")
    dead = deliver.send(to="x").message_id
    jobs.drain(fail=False)
    broken.clear()
    waiting = deliver.send(to="y").message_id

    with pytest.raises(NotPossible, match="is queued: it runs without being asked again"):
        operations.jobs.retry(waiting)
    operations.jobs.retry(dead)
    jobs.drain()
    assert jobs.state(dead) is State.SUCCEEDED
    with pytest.raises(NotPossible, match="its message is gone"):
        operations.jobs.retry(dead)
    with pytest.raises(JobNotFound):
        operations.jobs.retry("nobody")
