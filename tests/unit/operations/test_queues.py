"""Queues: counts, pausing, purging. And the quarantine."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from callboard import Priority, State, queues
from callboard.brokers.driver import Driver, IntakeOptions, Outgoing
from callboard.errors import JobNotFound, NotPossible, StoreUnavailable, UnknownQueue
from callboard.operations import Operations
from callboard.states import order
from callboard.store.base import Change
from callboard.testing import Jobs


def _status(operations: Operations, name: str) -> Any:
    (status,) = operations.queues.search(name)
    return status


def test_queues_are_listed_by_category_and_priority(operations: Operations, deliver: Any) -> None:
    names = [status.name for status in operations.queues.search()]

    assert names == [
        "post.critical",
        "post.high",
        "post.medium",
        "post.low",
        "post.dead",
        "callboard.quarantine",
    ]


def test_counts_tell_what_waits_what_is_held_and_what_is_delayed(
    operations: Operations, deliver: Any, jobs: Jobs
) -> None:
    for _ in range(3):
        deliver.send(to="x")
    deliver.using(delay=timedelta(hours=1)).send(to="x")
    intake = jobs.broker.driver.open_intake(IntakeOptions(queues=["post.high"], budget=1, worker="w"))
    intake.fetch(1, 0)

    status = _status(operations, "post.high")

    assert (status.ready, status.claimed, status.delayed, status.consumers) == (2, 1, 1, 1)
    assert (status.kind, status.category, status.priority, status.paused) == ("jobs", "post", "high", False)
    intake.close()


def test_a_pattern_pauses_several_and_resumes_them(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    deliver.send(to="x")
    assert len(operations.queues.pause("post.*")) == 4
    assert _status(operations, "post.high").paused
    jobs.drain()
    assert len(jobs.waiting) == 1

    assert operations.queues.resume("post.high") == ["post.high"]
    assert jobs.drain().succeeded == 1
    assert [entry.action for entry in operations.audit_log()] == ["queues.resume", "queues.pause"]


def test_an_unknown_queue_suggests_the_nearest(operations: Operations, deliver: Any) -> None:
    with pytest.raises(UnknownQueue, match=r"no queue of jobs 'post\.hihg'; did you mean 'post\.high'"):
        operations.queues.pause("post.hihg")


def test_a_category_in_place_of_a_queue_suggests_its_pattern(operations: Operations, deliver: Any) -> None:
    with pytest.raises(UnknownQueue, match=r"no queue of jobs 'post'; those of the category are 'post\.\*'"):
        operations.queues.pause("post")


def test_a_purge_drops_what_waits_and_says_so_in_the_records(
    operations: Operations, deliver: Any, jobs: Jobs
) -> None:
    waiting = [deliver.send(to="x").message_id for _ in range(3)]
    delayed = deliver.using(delay=timedelta(hours=1)).send(to="x").message_id

    result = operations.queues.purge("post.high")

    assert (result.count, result.recorded) == (4, True)
    assert jobs.waiting == []
    for job_id in [*waiting, delayed]:
        assert jobs.state(job_id) is State.DISCARDED
        assert jobs.record(job_id).reason == "purged from post.high by ada"
    done, begun = operations.audit_log()
    assert begun.details["step"] == "begun"
    assert (done.action, done.target, done.count) == ("queues.purge", "post.high", 4)


def _owner(jobs: Jobs, key: str) -> str | None:
    assert jobs.broker.store is not None
    return jobs.broker.store.key_owner(f"unique:deliver:{key}")


def test_a_purge_releases_the_keys_of_unique_jobs(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    sent = deliver.using(unique="the round").send(to="x")
    assert _owner(jobs, "the round") == sent.message_id

    operations.queues.purge("post.high")

    assert _owner(jobs, "the round") is None


def test_purging_a_forged_message_releases_no_key(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    sent = deliver.using(unique="the round", priority=Priority.LOW).send(to="x")
    forged = json.loads(_unsigned({"callboard": {"v": 1, "unique": "deliver:the round"}}, to="x"))
    body = json.dumps(forged | {"message_id": sent.message_id}).encode()
    jobs.broker.driver.put([Outgoing("post.high", body, sent.message_id)], deadline=1)

    assert operations.queues.purge("post.high").count == 1

    assert _owner(jobs, "the round") == sent.message_id


def test_a_worker_that_was_quicker_than_a_purge_has_the_last_word(
    operations: Operations, deliver: Any, jobs: Jobs
) -> None:
    assert jobs.broker.store is not None
    job_id = deliver.send(to="x").message_id
    operations.queues.purge("post.high")
    ended = State.SUCCEEDED

    jobs.broker.store.write([Change(job_id=job_id, order=order(0, ended), state=ended, at=jobs.clock())])

    assert jobs.state(job_id) is State.SUCCEEDED


def test_a_job_that_was_given_back_can_be_purged(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    assert jobs.broker.store is not None
    job_id = deliver.send(to="x").message_id
    given_back = Change(
        job_id=job_id, order=order(0, State.RUNNING), state=State.QUEUED, at=jobs.clock(), queue="post.high"
    )
    jobs.broker.store.write([given_back])

    operations.queues.purge("post.high")

    assert jobs.state(job_id) is State.DISCARDED


def test_a_purge_leaves_what_runs(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    intake = jobs.broker.driver.open_intake(IntakeOptions(queues=["post.high"], budget=1, worker="w"))
    intake.fetch(1, 0)

    assert operations.queues.purge("post.high").count == 0
    assert jobs.state(job_id) is State.QUEUED
    intake.close()


def test_dead_letters_are_not_purged(operations: Operations, deliver: Any) -> None:
    with pytest.raises(NotPossible, match="callboard dead discard"):
        operations.queues.purge("post.dead")


def test_what_cannot_be_audited_is_not_purged(
    operations: Operations, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver.send(to="x")

    def away(entry: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(jobs.broker.store, "audit", away)

    with pytest.raises(StoreUnavailable):
        operations.queues.purge("post.high")
    assert len(jobs.waiting) == 1


# -- quarantine ------------------------------------------------------------------------------------------

Suspect = Callable[[bytes], str]


@pytest.fixture
def suspect(jobs: Jobs, deliver: Any, operations: Operations) -> Suspect:
    """Has a worker find a message; returns its id in quarantine."""

    def suspect(body: bytes) -> str:
        jobs.broker.driver.put([Outgoing("post.high", body, "?")], deadline=1)
        with pytest.raises(AssertionError):
            jobs.drain()
        return operations.quarantine.search()[-1].id

    return suspect


def _unsigned(options: dict[str, Any] | None = None, **kwargs: Any) -> bytes:
    message = {
        "queue_name": "post.high",
        "actor_name": "deliver",
        "args": [],
        "kwargs": kwargs,
        "options": options or {},
        "message_id": "q-1",
        "message_timestamp": 1,
    }
    return json.dumps(message).encode()


def test_quarantine_shows_reason_origin_and_body(operations: Operations, suspect: Suspect) -> None:
    suspect_id = suspect(b"\x1b[31mgibberish\xff")

    shown = operations.quarantine.show(suspect_id)

    assert (shown.queue, shown.size) == ("post.high", 15)
    assert "the body is no message" in shown.reason
    assert shown.body == "\N{REPLACEMENT CHARACTER}[31mgibberish\N{REPLACEMENT CHARACTER}"


def test_secrets_of_a_readable_message_are_masked(operations: Operations, suspect: Suspect) -> None:
    shown = operations.quarantine.show(suspect(_unsigned(to="x", password="geheim")))

    assert "it isn't signed" in shown.reason
    assert "geheim" not in shown.body


def test_vouching_signs_and_sends_it(operations: Operations, suspect: Suspect, jobs: Jobs) -> None:
    suspect_id = suspect(_unsigned(to="x"))

    assert operations.quarantine.replay(suspect_id) == "q-1"

    assert operations.quarantine.search() == []
    assert jobs.drain().succeeded == 1
    assert operations.audit_log()[0].action == "quarantine.replay"


def test_options_that_make_other_jobs_run_are_shown_and_vouched_for_only_by_name(
    operations: Operations, suspect: Suspect, jobs: Jobs
) -> None:
    other = json.loads(_unsigned(to="mallory", password="geheim")) | {"message_id": "q-2"}
    suspect_id = suspect(_unsigned({"pipe_target": other, "pipe_ignore": True}, to="x" * 5_000))

    shown = operations.quarantine.show(suspect_id)
    assert shown.starts == ("pipe_target",)
    assert "mallory" in shown.options
    assert "geheim" not in shown.options
    with pytest.raises(NotPossible, match="by its options pipe_target; look at them"):
        operations.quarantine.replay(suspect_id)
    assert jobs.waiting == []
    assert operations.quarantine.replay(suspect_id, with_options=True) == "q-1"


@pytest.mark.parametrize(
    "name", ["on_success", "on_failure", "on_retry_exhausted", "group_completion_uuid", "group_anything"]
)
def test_any_option_that_makes_other_jobs_run_has_to_be_vouched_for(
    operations: Operations, suspect: Suspect, name: str
) -> None:
    suspect_id = suspect(_unsigned({name: "deliver"}, to="x"))

    with pytest.raises(NotPossible, match=name):
        operations.quarantine.replay(suspect_id)


def test_what_cannot_be_read_cannot_be_vouched_for(operations: Operations, suspect: Suspect) -> None:
    with pytest.raises(NotPossible, match="it can only be discarded"):
        operations.quarantine.replay(suspect(b"gibberish"))
    with pytest.raises(NotPossible, match="'to' is missing"):
        operations.quarantine.replay(suspect(_unsigned()))


def test_discarding_takes_those_that_are_named(operations: Operations, suspect: Suspect, jobs: Jobs) -> None:
    first, second = suspect(b"one"), suspect(b"two")

    result = operations.quarantine.discard([first, "nobody"])

    assert (result.ids, result.count, result.not_found) == ([first], 1, ["nobody"])
    assert [left.id for left in operations.quarantine.search()] == [second]
    assert operations.quarantine.discard(None).count == 1
    assert jobs.broker.driver.counts([queues.QUARANTINE])[queues.QUARANTINE].ready == 0
    with pytest.raises(JobNotFound):
        operations.quarantine.show(second)


def test_discarding_releases_the_key_of_a_unique_job_that_is_nowhere_else(
    operations: Operations, suspect: Suspect, deliver: Any, jobs: Jobs
) -> None:
    deliver.using(unique="the round", job_id="q-1").send(to="x")
    jobs.broker.driver.purge("post.high")  # its message was changed on its way
    suspect(_unsigned({"callboard": {"v": 1, "unique": "deliver:the round"}}, to="y"))
    assert _owner(jobs, "the round") == "q-1"

    operations.quarantine.discard(None)

    assert _owner(jobs, "the round") is None


def test_discarding_a_message_that_names_a_living_job_releases_no_key(
    operations: Operations, suspect: Suspect, deliver: Any, jobs: Jobs
) -> None:
    suspect(_unsigned({"callboard": {"v": 1, "unique": "deliver:the round"}}, to="y"))
    deliver.using(unique="the round", job_id="q-1").send(to="x")

    operations.quarantine.discard(None)

    assert _owner(jobs, "the round") == "q-1"


def test_where_jobs_cannot_be_looked_up_discarding_releases_no_key(
    operations: Operations, suspect: Suspect, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect(_unsigned({"callboard": {"v": 1, "unique": "deliver:the round"}}, to="y"))
    deliver.using(unique="the round", job_id="q-1").send(to="x")
    monkeypatch.setattr(type(jobs.broker.driver), "locate", Driver.locate)

    operations.quarantine.discard(None)

    assert _owner(jobs, "the round") == "q-1"


def test_a_job_in_quarantine_is_not_hidden(
    operations: Operations, suspect: Suspect, deliver: Any, jobs: Jobs
) -> None:
    sent = deliver.using(job_id="q-1").send(to="x")
    jobs.broker.driver.purge("post.high")  # its message was changed on its way
    suspect_id = suspect(_unsigned(to="y"))

    why = operations.why(sent.message_id)

    assert why.sentence.startswith("In quarantine for a moment, from post.high: it isn't signed")
    assert why.facts["quarantined"] == suspect_id


def test_a_job_that_comes_from_quarantine_is_recorded_as_newer(
    operations: Operations, suspect: Suspect, deliver: Any, jobs: Jobs
) -> None:
    assert jobs.broker.store is not None
    retrying = State.RETRYING
    jobs.broker.store.write([Change(job_id="q-1", order=order(3, retrying), state=retrying, at=jobs.clock())])
    operations.quarantine.replay(suspect(_unsigned(to="x")))

    jobs.drain()

    assert jobs.state("q-1") is State.SUCCEEDED
