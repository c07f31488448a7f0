"""Runs that were cut short: who knows of them, and when they make a job poison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from callboard import State, current_job, dead_letter
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, Die, Later
from callboard.brokers.driver import Driver, IntakeOptions
from callboard.brokers.stub import StubDriver, StubIntake
from callboard.errors import StoreUnavailable
from callboard.states import order
from callboard.store import open_store
from callboard.store.base import Change
from callboard.worker.cut_runs import (
    CutRun,
    CutRunMemory,
    correct_records,
    cut_runs,
    is_poison,
    remember,
    settle_cut_run,
)
from callboard.worker.redeliveries import Redeliveries
from callboard.worker.worker import Worker
from tests.patience import until
from tests.unit.worker.conftest import PATIENCE, Gate, Working

QUEUE = "jobs.medium"


def a_run(job_id: str = "job", *, at: float = 1.0, worker: str = "host:1", beside: int = 0) -> CutRun:
    return CutRun(job_id, at, worker, "signal 9 (SIGKILL)", 2.0, 3 << 20, beside)


@pytest.fixture
def memory() -> CutRunMemory:
    return CutRunMemory()


@pytest.fixture
def claim(broker: Broker) -> Callable[[], ClaimedMessage]:
    """Claims what is ready."""

    def claim() -> ClaimedMessage:
        intake = broker.driver.open_intake(IntakeOptions([QUEUE], 10, "a worker"))
        (delivery,) = intake.fetch(1, PATIENCE)
        message = broker.receive(delivery, intake)
        assert message is not None
        return message

    return claim


def crash(message: ClaimedMessage) -> None:
    assert isinstance(message.intake, StubIntake)
    message.intake.crash()


@pytest.mark.parametrize(
    ("beside", "poison"),
    [
        ([0, 0], False),
        ([0, 0, 0], True),
        ([5, 0], False),
        ([5, 0, 0], True),
        ([5, 5, 5, 5, 0], False),
        ([1], False),
        ([], False),
    ],
)
def test_three_deaths_make_poison_and_of_those_in_company_one_counts(beside: list[int], poison: bool) -> None:
    assert is_poison([a_run(at=n, beside=others) for n, others in enumerate(beside)]) is poison


def test_the_memory_tells_them_by_job_and_by_worker(memory: CutRunMemory) -> None:
    first, second, other = a_run("a"), a_run("a", at=2.0, worker="host:2"), a_run("ab", worker="host:2")
    memory.add([first, second, other])
    assert memory.of_job("a") == [first, second]
    assert memory.of_job("ab") == [other]
    assert memory.of_worker("host:2") == [second, other]
    assert memory.of_job("b") == []


def test_the_memory_keeps_the_last_thousand(memory: CutRunMemory) -> None:
    memory.add(a_run(f"job-{n}." + "x" * 110) for n in range(1500))
    assert memory.of_job("job-400." + "x" * 110) == []
    assert len(memory.of_job("job-500." + "x" * 110)) == 1
    assert len(memory.of_job("job-1499." + "x" * 110)) == 1


def test_what_the_store_and_this_worker_know_is_put_together(memory: CutRunMemory) -> None:
    store = open_store("memory:")
    old, elsewhere, here = a_run(at=1.0), a_run(at=2.0, worker="other:7"), a_run(at=3.0)
    remember(store, [old, elsewhere])
    remember(store, [elsewhere])
    memory.add([elsewhere, here])
    assert cut_runs(store, memory, "job") == [old, elsewhere, here]
    assert cut_runs(store, memory, "job", since=1.5) == [elsewhere, here]
    assert cut_runs(store, None, "job") == [old, elsewhere]
    assert cut_runs(None, memory, "job") == [elsewhere, here]


def test_while_the_store_is_away_this_workers_own_deaths_count(
    memory: CutRunMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> None:
        raise StoreUnavailable("it is away")

    store = open_store("memory:")
    monkeypatch.setattr(store, "get_result", away)
    memory.add([a_run()])
    assert cut_runs(store, memory, "job") == [a_run()]


def test_it_comes_back_after_a_pause_that_doubles(
    broker: Broker, actor: ActorDecorator, claim: Callable[[], ClaimedMessage]
) -> None:
    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    do_nothing.send()
    message = claim()
    for count, pause in [(1, 1.0), (2, 2.0)]:
        before = broker.clock()
        settle_cut_run(broker, message, [a_run(at=n, beside=1 - n) for n in range(count)])
        later = message.disposition
        assert isinstance(later, Later)
        assert pause <= later.due - before < pause + 10
        assert later.failed_run is None
        assert f"({count} of 3)" in later.reason
        message = claim()
        assert message.headers.crashes == count
        assert message.attempt == 1


def test_poison_is_a_dead_letter_with_all_three_deaths(
    broker: Broker, actor: ActorDecorator, claim: Callable[[], ClaimedMessage]
) -> None:
    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    sent = do_nothing.send()
    message = claim()
    settle_cut_run(broker, message, [a_run(at=n, worker=f"host:{n}") for n in range(3)])
    assert isinstance(message.disposition, Die)
    (stored,) = broker.driver.peek("jobs.dead")
    letter = dead_letter.decode(stored.body)
    assert letter.job_id == sent.message_id
    assert [error.worker for error in letter.attempts] == ["host:0", "host:1", "host:2"]
    assert "3 MiB" in letter.reason
    assert broker.recorder is not None
    assert broker.recorder.flush()
    assert broker.store is not None
    record = broker.store.get(sent.message_id)
    assert record is not None
    assert record.state is State.DEAD


def test_a_redelivered_job_whose_worker_died_is_told_so_and_then_has_to_be_alone(
    broker: Broker, actor: ActorDecorator, claim: Callable[[], ClaimedMessage], memory: CutRunMemory
) -> None:
    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    sent = do_nothing.send()
    crash(claim())
    memory.add([a_run(sent.message_id, beside=4)])
    held = Redeliveries(broker, lambda _: False, deaths=memory)
    back = claim()
    assert held.concerns(back)
    held.hold(back)
    assert held.take(10) == []
    assert back.settled
    again = claim()
    assert not again.delivery.redelivered
    assert held.concerns(again)
    held.hold(again)
    assert held.take(10) == []
    assert held.take_suspects() == [(again, 1.0)]
    assert len(held) == 0


def test_what_is_replayed_begins_anew(
    broker: Broker, actor: ActorDecorator, claim: Callable[[], ClaimedMessage], memory: CutRunMemory
) -> None:
    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    sent = do_nothing.send()
    crash(claim())
    memory.add([a_run(sent.message_id, at=n) for n in range(1, 4)])
    back = claim()
    back.headers.replayed_at = 3.5
    held = Redeliveries(broker, lambda _: False, deaths=memory)
    held.hold(back)
    assert held.take(10) == [back]


class Unsearchable(StubDriver):
    """A driver that can't say whether it has a job."""

    locate = Driver.locate


@pytest.mark.parametrize(
    ("driver", "sent", "state"),
    [
        (Unsearchable(), False, State.QUEUED),
        (StubDriver(), True, State.QUEUED),
        (StubDriver(), False, State.SUCCEEDED),
    ],
    ids=["nobody knows where it is", "it is there", "it is gone"],
)
def test_a_record_that_says_of_a_dead_worker_that_it_runs_a_job_is_corrected(
    broker: Broker, actor: ActorDecorator, sent: bool, state: State
) -> None:
    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    job_id = do_nothing.send().message_id if sent else "gone"
    store = broker.store
    assert store is not None
    running = Change(job_id=job_id, order=order(2, State.RUNNING), state=State.RUNNING, at=1.0)
    running.worker = "host:1:abc"
    store.write([running])
    correct_records(broker, [a_run(job_id, worker="host:12")])
    record = store.get(job_id)
    assert record is not None
    assert record.state is State.RUNNING, "another worker has it"
    correct_records(broker, [a_run(job_id)])
    record = store.get(job_id)
    assert record is not None
    assert record.state is state
    assert record.reason.startswith("its run was cut short") is (state is State.QUEUED)
    correct_records(broker, [a_run(job_id)])
    assert store.get(job_id) == record


def test_it_runs_when_nothing_else_does_and_nothing_else_starts_meanwhile(
    broker: Broker, actor: ActorDecorator, working: Working, gate: Gate, memory: CutRunMemory
) -> None:
    beside: list[tuple[str, int]] = []
    worker: Worker

    @actor(category="jobs")
    def wait() -> None:
        gate.pass_through()

    @actor(category="jobs")
    def look() -> None:
        beside.append((current_job().id, len(worker.running)))

    suspect = look.send()
    intake = broker.driver.open_intake(IntakeOptions([QUEUE], 10, "one that dies"))
    intake.fetch(1, PATIENCE)
    wait.send()
    worker = working(threads=4, deaths=memory)
    gate.wait_for()
    memory.add([a_run(suspect.message_id, beside=3)])
    assert isinstance(intake, StubIntake)
    intake.crash()
    until(lambda: worker._solitude)
    others = {look.send().message_id for _ in range(20)}
    assert beside == []
    gate.open()
    until(lambda: len(beside) == 21)
    assert dict(beside)[suspect.message_id] == 1
    assert others == {job_id for job_id, _ in beside[1:]}, "they waited for it"
