"""Why a job isn't running: a sentence for each place where it can be."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from callboard import Snooze, State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.driver import IntakeOptions, Outgoing
from callboard.errors import BrokerUnavailable, StoreUnavailable
from callboard.operations import Operations
from callboard.operations.why import Why
from callboard.states import order
from callboard.store import open_store
from callboard.store.base import Change, Heartbeat
from callboard.testing import Jobs

WORKER = "host:1:abc"


def _beat(jobs: Jobs, *, queues: tuple[str, ...] = ("post.high",), **fields: Any) -> None:
    """A worker gives a sign of life."""
    assert jobs.broker.store is not None
    jobs.broker.store.beat(
        Heartbeat(
            worker=WORKER,
            at=time.time(),
            started_at=time.time(),
            host="host",
            pid=1,
            queues=queues,
            **{"threads": 2, **fields},
        )
    )


def _write(jobs: Jobs, job_id: str, state: State, *, hop: int = 0, **fields: Any) -> None:
    """Something becomes known of a job."""
    assert jobs.broker.store is not None
    kind = {"actor": "deliver", "category": "post", "queue": "post.high"}
    change = Change(
        job_id=job_id, order=order(hop, state), state=state, at=jobs.clock(), **{**kind, **fields}
    )
    jobs.broker.store.write([change])


# -- waiting ---------------------------------------------------------------------------------------------


def test_a_run_that_was_cut_short_is_no_attempt(operations: Operations, jobs: Jobs) -> None:
    cut = "its run was cut short: worker host:1 was ended by signal 9 (SIGKILL) while it ran this job"
    _beat(jobs)
    _write(jobs, "early", State.QUEUED, hop=0, attempt=1, reason=cut)
    assert operations.why("early").sentence.startswith(f"Queued for a moment in post.high, after {cut}")

    due = jobs.clock() + 1.0
    _write(jobs, "late", State.RETRYING, hop=1, attempt=1, due_at=due, reason=f"{cut} (1 of 3)")
    assert f"for attempt 1, since {cut} (1 of 3)" in operations.why("late").sentence


def test_no_worker_consumes_its_queue(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    jobs.clock.advance(timedelta(minutes=3))

    why = operations.why(job_id)

    assert why.sentence == (
        "Queued for 3 min in post.high, and no worker consumes that queue; "
        "start one: callboard worker --queues 'post.*'."
    )
    assert why.facts["workers"] == 0


def test_its_category_is_no_more(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    jobs.broker.driver.put([Outgoing("mail.high", b"{}", "left")], deadline=1)
    _write(jobs, "left", State.QUEUED, queue="mail.high")

    assert operations.why("left").sentence == (
        "Queued for a moment in mail.high, and no worker consumes that queue, for no actor here has it: declare one "
        "with category='mail' until nothing waits there, or throw that away: callboard queues purge mail.high."
    )


def test_its_queue_is_paused(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    operations.queues.pause("post.high")

    why = operations.why(job_id)

    assert "in post.high, which is paused; 'callboard queues resume post.high' lets it go" in why.sentence
    assert why.facts["paused"] is True


def test_others_are_before_it(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    ids = [deliver.send(to="x").message_id for _ in range(3)]
    _beat(jobs, running=("a", "b"))

    sentence = operations.why(ids[-1]).sentence

    assert "behind up to 2 others; all 2 threads of the one worker that consumes it are busy" in sentence


def test_a_single_busy_thread_is_no_several(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    _beat(jobs, running=("a",), threads=1)

    assert "the only thread of the one worker that consumes it is busy" in operations.why(job_id).sentence


def test_it_is_next(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    _beat(jobs)

    assert "next in line" in operations.why(job_id).sentence


def test_a_worker_holds_it_and_has_not_started_it(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    _beat(jobs)
    intake = jobs.broker.driver.open_intake(IntakeOptions(queues=["post.high"], budget=1, worker=WORKER))
    assert len(intake.fetch(1, 0)) == 1

    why = operations.why(job_id)

    assert f"worker {WORKER} has taken it and starts it next" in why.sentence
    assert why.facts["claimed_by"] == WORKER
    intake.close()


def test_it_is_delayed(operations: Operations, deliver: Any) -> None:
    job_id = deliver.using(delay=timedelta(hours=2)).send(to="x").message_id

    assert operations.why(job_id).sentence.startswith("Scheduled: it may start in 2 h (at ")


def test_a_delayed_job_that_is_due_has_an_obstacle_like_any_other(
    operations: Operations, deliver: Any, jobs: Jobs
) -> None:
    job_id = deliver.using(delay=timedelta(hours=2)).send(to="x").message_id
    jobs.clock.advance(timedelta(hours=3))

    sentence = operations.why(job_id).sentence

    assert sentence.startswith("Scheduled, and due for 1 h in post.high, and no worker consumes that queue")


def test_it_waits_for_its_next_attempt(operations: Operations, actor: ActorDecorator, jobs: Jobs) -> None:
    @actor(category="post")
    def stumble() -> None:
        raise ValueError("wet paint")

    job_id = stumble.send().message_id
    jobs.drain(advance=False)

    sentence = operations.why(job_id).sentence

    assert sentence.startswith("Waiting ")
    assert "for attempt 2, since attempt 1 failed: ValueError: wet paint" in sentence


def test_it_snoozes(operations: Operations, actor: ActorDecorator, jobs: Jobs) -> None:
    @actor(category="post")
    def nap() -> None:
        raise Snooze(timedelta(minutes=10), "the shop is closed")

    job_id = nap.send().message_id
    jobs.drain(advance=False)

    assert operations.why(job_id).sentence.startswith(
        "Snoozed by itself (the shop is closed): it comes back in 10 min"
    )


def test_it_waits_for_a_rate_limit(operations: Operations, actor: ActorDecorator, jobs: Jobs) -> None:
    @actor(category="post", rate="6/hour")
    def call() -> None: ...

    call.send()
    waiting = call.send().message_id
    jobs.drain(advance=False)

    sentence = operations.why(waiting).sentence
    assert sentence.startswith("Waits for the rate limit of call, 6/hour: it may start in ")


def test_it_is_parked_since_it_was_first_looked_at(operations: Operations, jobs: Jobs) -> None:
    began = jobs.clock()
    for _ in range(3):
        _write(
            jobs,
            "p1",
            State.PARKED,
            due_at=jobs.clock() + 60,
            reason="no worker here knows the actor 'x'",
            event="no worker here knows the actor 'x'",
        )
        jobs.clock.advance(timedelta(minutes=1))
    jobs.broker.driver.put([Outgoing("post.high", b"", "p1", due=jobs.clock() + 30)], deadline=1)

    why = operations.why("p1")

    assert why.sentence.startswith("Parked for 3 min, since ")
    assert "no worker here knows the actor 'x'" in why.sentence
    assert why.facts["parked_since"] == began


def test_its_cancellation_was_asked_for(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.using(delay=timedelta(hours=2)).send(to="x").message_id
    operations.jobs.cancel(job_id)
    jobs.clock.advance(timedelta(seconds=20))

    assert (
        "its cancellation was asked for 20 s ago, so it ends as cancelled" in operations.why(job_id).sentence
    )


# -- running ---------------------------------------------------------------------------------------------


def test_it_runs(operations: Operations, actor: ActorDecorator, jobs: Jobs) -> None:
    answers: list[Why] = []

    @actor(category="post")
    def look() -> None:
        current_job().progress(0.4, "rows")
        jobs.clock.advance(timedelta(seconds=5))
        answers.append(operations.why(current_job().id))

    look.send()
    jobs.drain()

    (why,) = answers
    assert why.sentence.startswith("Running for 5 s (since ")
    assert "40% done (rows)" in why.sentence
    assert "gives no sign of life" in why.sentence  # no worker beats in this test
    assert why.facts["worker_alive"] is False


def test_it_runs_on_a_worker_that_was_not_recorded(operations: Operations, jobs: Jobs) -> None:
    _write(jobs, "r1", State.RUNNING, progress=0.4, started_at=jobs.clock())
    jobs.broker.driver.put([Outgoing("post.high", b"", "r1")], deadline=1)

    assert operations.why("r1").sentence.endswith(", 40% done; on which worker was not recorded.")


def test_it_runs_on_a_worker_that_lives(operations: Operations, jobs: Jobs) -> None:
    _write(jobs, "r1", State.RUNNING, started_at=jobs.clock(), attempt=2, worker=WORKER)
    jobs.broker.driver.put([Outgoing("post.high", b"", "r1")], deadline=1)
    _beat(jobs, running=("r1",))

    why = operations.why("r1")

    assert "(attempt 2, since " in why.sentence
    assert "no sign of life" not in why.sentence
    assert why.facts["worker_alive"] is True


def test_a_record_that_is_behind_is_not_believed(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    jobs.broker.driver.purge("post.high")

    assert "says its record, but the broker no longer has it" in operations.why(job_id).sentence


# -- ended -----------------------------------------------------------------------------------------------


def test_it_succeeded(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    jobs.drain()
    jobs.clock.advance(timedelta(minutes=5))

    assert operations.why(job_id).sentence.startswith("Succeeded 5 min ago, after running for ")


def test_it_is_dead(operations: Operations, deliver: Any, jobs: Jobs, broken: set[str]) -> None:
    broken.add("nowhere")
    job_id = deliver.send(to="nowhere").message_id
    jobs.drain(fail=False)

    assert operations.why(job_id).sentence == (
        "Dead for a moment: permanent: no such street: nowhere; "
        f"'callboard dead replay {job_id}' runs it again when the cause is mended."
    )


def test_it_was_cancelled_or_expired_or_discarded(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    cancelled = deliver.send(to="x").message_id
    operations.jobs.cancel(cancelled)
    expired = deliver.using(expires=timedelta(seconds=1)).send(to="x").message_id
    jobs.clock.advance(timedelta(seconds=5))
    jobs.drain()
    discarded = deliver.send(to="x").message_id
    operations.queues.purge("post.high")

    assert operations.why(cancelled).sentence == "Cancelled before it started, a moment ago."
    assert operations.why(expired).sentence.startswith("Expired a moment ago: not started before ")
    assert operations.why(discarded).sentence == "Discarded a moment ago: purged from post.high by ada."


# -- what can't be known ---------------------------------------------------------------------------------


def test_nobody_knows_it(operations: Operations) -> None:
    why = operations.why("nobody")

    assert not why.known
    assert why.sentence == "There is no such job that the store or the broker knows."


def test_the_store_lost_it_and_the_broker_has_it(
    operations: Operations, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))

    sentence = Operations(jobs.broker).why(job_id).sentence

    assert sentence.startswith("It waits in post.high, and no worker consumes that queue")
    assert sentence.endswith("the store has no record of it.")


def test_a_dead_letter_without_a_record_is_found_where_jobs_cannot_be_looked_up(
    operations: Operations, deliver: Any, jobs: Jobs, broken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.add("nowhere")
    job_id = deliver.send(to="nowhere").message_id
    jobs.drain(fail=False)
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))
    monkeypatch.setattr("callboard.operations.why.can_locate", lambda driver: False)
    monkeypatch.setattr(jobs.broker.driver, "locate", lambda job_id: None)

    why = Operations(jobs.broker).why(job_id)

    assert why.known
    assert "its letter lies in post.dead" in why.sentence


@pytest.mark.parametrize("locatable", [True, False])
def test_its_letter_is_there_and_its_record_was_lost_with_the_process(
    operations: Operations,
    deliver: Any,
    jobs: Jobs,
    broken: set[str],
    monkeypatch: pytest.MonkeyPatch,
    locatable: bool,
) -> None:
    broken.add("nowhere")
    job_id = deliver.send(to="nowhere").message_id
    jobs.drain(fail=False)
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))
    _write(jobs, job_id, State.RUNNING, started_at=jobs.clock(), worker=WORKER)
    if not locatable:
        monkeypatch.setattr("callboard.operations.why.can_locate", lambda driver: False)
        monkeypatch.setattr(jobs.broker.driver, "locate", lambda job_id: None)
    operations = Operations(jobs.broker)

    sentence = operations.why(job_id).sentence

    assert sentence.startswith(
        f"Dead: its letter lies in post.dead; 'callboard dead show {job_id}' tells why"
    )
    assert "its record, which says running, is behind" in sentence
    assert operations.dead.show(job_id).summary.reason == "permanent: no such street: nowhere"


def test_records_were_dropped(operations: Operations, deliver: Any, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    assert jobs.broker.store is not None
    jobs.broker.store.report_dropped(7, since=jobs.clock() - 5, until=jobs.clock() + 5)

    why = operations.why(job_id)

    assert "7 records were dropped between " in why.sentence
    assert why.facts["records_dropped"] == 7


def test_records_that_were_dropped_before_its_last_one_do_not_matter(
    operations: Operations, deliver: Any, jobs: Jobs
) -> None:
    assert jobs.broker.store is not None
    jobs.broker.store.report_dropped(7, since=jobs.clock() - 50, until=jobs.clock() - 40)
    job_id = deliver.send(to="x").message_id

    assert "dropped" not in operations.why(job_id).sentence


def test_the_store_is_away(
    operations: Operations, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id

    def away(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(jobs.broker.store, "get", away)

    why = operations.why(job_id)

    assert why.sentence.startswith("It waits in post.high")
    assert why.sentence.endswith("; the store can't be asked: the disk is full.")
    assert why.facts["store_error"] == "the disk is full"


def test_the_broker_is_away(
    operations: Operations, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id

    def away(*_: object) -> None:
        raise BrokerUnavailable("RabbitMQ is away: connection refused")

    monkeypatch.setattr(jobs.broker.driver, "locate", away)

    why = operations.why(job_id)

    assert why.sentence.startswith("Queued for ")
    assert why.sentence.endswith("; the broker can't be asked: RabbitMQ is away: connection refused.")
