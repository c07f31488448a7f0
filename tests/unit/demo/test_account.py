from __future__ import annotations

import io
from collections.abc import Iterator

import dramatiq
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from callboard import Permanent, Priority
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.demo.account import (
    KindOfJob,
    Timing,
    kinds_of_jobs,
    print_table,
    take_account,
    waits_by_priority,
)
from callboard.demo.knowledge import Knowledge
from callboard.demo.programme import PlannedJob
from callboard.metrics import Metrics
from callboard.operations import Operations
from callboard.states import State, order
from callboard.store import open_store
from callboard.store.base import Change, Record
from callboard.testing import Jobs
from middleware import stack


@pytest.fixture
def callboard_broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Takes the place of the plugin's own, which imports the application's."""
    store = open_store("memory:")
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


class Theatre:
    """A demo in small: jobs that write their name down, unless they are to fail or to cheat."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.written: set[str] = set()
        self.operations = Operations(jobs.broker, who="demo")
        self.knowledge = Knowledge(self.operations)
        actor = ActorDecorator(jobs.broker)

        @actor(category="post")
        def write(name: str) -> None:
            if name == "fails":
                raise Permanent("no ink")
            if name != "cheats":
                self.written.add(name)

        self.write = write

    def send(self, name: str, priority: Priority = Priority.MEDIUM) -> str:
        message = self.write.using(priority=priority).send(name)
        self.knowledge.sent[message.message_id] = PlannedJob(
            actor="write",
            payload={"name": name},
            priority=priority,
            about=f"writing {name}",
            proof=lambda _: "" if name in self.written else f"{name} isn't written",
        )
        return message.message_id


@pytest.fixture
def theatre(jobs: Jobs) -> Iterator[Theatre]:
    theatre = Theatre(jobs)
    yield theatre
    theatre.knowledge.close()


def test_jobs_that_did_what_they_should_are_done(theatre: Theatre) -> None:
    theatre.send("ada")
    theatre.send("grace")
    theatre.jobs.drain()
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 2, done 2, lost 0"
    assert account.holds


def test_a_job_that_says_it_succeeded_and_did_nothing_is_lost(theatre: Theatre) -> None:
    theatre.send("ada")
    cheat = theatre.send("cheats")
    theatre.jobs.drain()
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 2, done 1, lost 1"
    assert not account.holds
    (fault,) = account.faults
    assert fault.startswith(f"{cheat}, writing cheats: cheats isn't written. Succeeded")


def test_a_job_that_still_waits_is_unfinished_and_not_lost(theatre: Theatre) -> None:
    theatre.send("ada")
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 1, done 0, lost 0, unfinished 1"
    assert not account.holds


def test_a_dead_letter_is_unfinished(theatre: Theatre) -> None:
    theatre.send("fails")
    theatre.jobs.drain(fail=False)
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 1, done 0, lost 0, unfinished 1"
    assert "no ink" in account.faults[0]


def test_a_message_that_is_gone_is_lost(theatre: Theatre) -> None:
    theatre.send("ada")
    theatre.operations.queues.purge("post.medium")
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 1, done 0, lost 1"


def test_a_message_that_is_left_over_is_told_though_all_is_done(theatre: Theatre) -> None:
    theatre.send("ada")
    theatre.jobs.drain()
    theatre.write.send("nobody's")
    account = take_account(theatre.knowledge, theatre.operations)
    assert str(account) == "sent 1, done 1, lost 0, left in queues 1"
    assert not account.holds


def test_a_job_whose_end_was_never_recorded_is_done_when_it_proves_itself(theatre: Theatre) -> None:
    job_id = theatre.send("ada")
    theatre.operations.queues.purge("post.medium")
    theatre.jobs.broker.store.write(  # type: ignore[union-attr]
        [
            Change(
                job_id=job_id,
                order=order(9, State.RUNNING),
                state=State.RUNNING,
                at=1.0,
                worker="host:42:abc",
            )
        ]
    )
    assert take_account(theatre.knowledge, theatre.operations).lost == 1
    theatre.written.add("ada")
    assert str(take_account(theatre.knowledge, theatre.operations)) == "sent 1, done 1, lost 0"


def test_nothing_sent_is_no_success(theatre: Theatre) -> None:
    assert not take_account(theatre.knowledge, theatre.operations).holds


def test_a_dead_and_replayed_job_keeps_its_attempts(theatre: Theatre) -> None:
    job_id = theatre.send("fails")
    theatre.jobs.drain(fail=False)
    theatre.knowledge.look()
    died = theatre.knowledge.records[job_id]
    theatre.knowledge.records[job_id] = Record(
        job_id=job_id, order=99, state=State.SUCCEEDED, updated_at=2.0, attempt=1
    )
    assert died.attempt == 1
    assert theatre.knowledge.attempts(job_id) == 2


def test_times_are_medians_and_99th_percentiles_of_what_was_measured(theatre: Theatre) -> None:
    for number in range(1, 201):
        job_id = theatre.send(f"job {number}", Priority.CRITICAL if number <= 100 else Priority.LOW)
        theatre.knowledge.records[job_id] = Record(
            job_id=job_id,
            order=1,
            state=State.SUCCEEDED,
            updated_at=0.0,
            attempt=1,
            enqueued_at=1000.0,
            started_at=1000.0 + number,
            finished_at=1000.0 + number + number / 1000,
        )
    (line,) = kinds_of_jobs(theatre.knowledge, ["write"])
    assert (line.count, line.attempts) == (200, 200)
    assert (line.wait.p50, line.wait.p99) == (100.0, 198.0)
    assert (line.run.p50, line.run.p99) == pytest.approx((0.1, 0.198))
    assert waits_by_priority(theatre.knowledge).startswith("critical 50.0 s, high < 1 ms")


@pytest.mark.parametrize(("width", "has_output"), [(80, False), (110, True)])
def test_the_table_fits_the_terminal(width: int, has_output: bool) -> None:
    timing = Timing(p50=0.0123, p99=123.4)
    line = KindOfJob(actor="clean-generated-files", count=320, attempts=1000, wait=timing, run=timing)
    out = io.StringIO()

    print_table(Console(file=out, width=width), [line], {line.actor: "storage/generated/"})

    head, row = out.getvalue().splitlines()
    assert head.rstrip().endswith("OUTPUT") is has_output
    assert row.rstrip().endswith("storage/generated/" if has_output else "123.4 s")


def test_a_wait_begins_when_a_job_could_have_started(theatre: Theatre) -> None:
    job_id = theatre.send("late")
    theatre.knowledge.records[job_id] = Record(
        job_id=job_id,
        order=1,
        state=State.SUCCEEDED,
        updated_at=0.0,
        enqueued_at=1000.0,
        due_at=1060.0,
        started_at=1061.0,
        finished_at=1062.0,
    )
    (line,) = kinds_of_jobs(theatre.knowledge, ["write"])
    assert line.wait.p50 == 1.0
