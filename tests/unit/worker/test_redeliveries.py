"""A job that was delivered before waits, and is looked at, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from callboard import State
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.driver import IntakeOptions
from callboard.brokers.stub import StubDriver, StubIntake
from callboard.errors import StoreUnavailable
from callboard.store.control import ControlWatch
from callboard.store.leases import LEASE, free_lease, lease_owner, take_lease
from callboard.worker.redeliveries import WAIT, Redeliveries
from callboard.worker.worker import Worker
from tests.unit.worker.conftest import PATIENCE, Gate, Working

QUEUE = "jobs.medium"

Redelivered = Callable[[], ClaimedMessage]


class Network(StubDriver):
    """A driver that takes claims back from workers that live, as RabbitMQ does."""

    claims_are_leases = False


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def driver() -> StubDriver:
    return Network()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def running() -> set[str]:
    return set()


@pytest.fixture
def held(broker: Broker, running: set[str], clock: Clock) -> Redeliveries:
    return Redeliveries(broker, running.__contains__, clock=clock)


@pytest.fixture
def redelivered(broker: Broker, actor: ActorDecorator) -> Redelivered:
    """Claims a job that another worker had."""

    @actor(category="jobs")
    def do_nothing() -> None:
        pass

    def claim() -> ClaimedMessage:
        do_nothing.send()
        for worker in ("the first", "the second"):
            intake = broker.driver.open_intake(IntakeOptions([QUEUE], 10, worker))
            (delivery,) = intake.fetch(1, PATIENCE)
            if worker == "the first":
                assert isinstance(intake, StubIntake)
                intake.crash()
        assert delivery.redelivered
        message = broker.receive(delivery, intake)
        assert message is not None
        return message

    return claim


def test_it_may_start_when_its_wait_is_over(
    held: Redeliveries, redelivered: Redelivered, clock: Clock
) -> None:
    message = redelivered()
    assert held.concerns(message)
    held.hold(message)
    assert held.patience() == WAIT
    clock.now += WAIT - 0.1
    assert held.take(10) == []
    clock.now += 0.2
    assert held.take(10) == [message]
    assert len(held) == 0


def test_no_more_are_started_than_there_is_room_for_and_the_surplus_goes_back(
    held: Redeliveries, redelivered: Redelivered, clock: Clock
) -> None:
    messages = [redelivered() for _ in range(3)]
    for message in messages:
        held.hold(message)
    clock.now += WAIT
    assert held.take(0) == []
    assert held.take(1) == messages[:1]
    assert held.surplus() == []
    clock.now += 60
    assert held.surplus() == messages[1:]
    assert len(held) == 0


def test_it_waits_while_the_job_runs_in_this_worker(
    held: Redeliveries, redelivered: Redelivered, clock: Clock, running: set[str]
) -> None:
    message = redelivered()
    running.add(message.message_id)
    held.hold(message)
    for _ in range(100):
        clock.now += WAIT
        assert held.take(10) == []
    running.clear()
    clock.now += WAIT
    assert held.take(10) == [message]


def test_it_waits_while_somebody_has_the_jobs_lease(
    held: Redeliveries, redelivered: Redelivered, clock: Clock, broker: Broker
) -> None:
    message = redelivered()
    assert broker.store is not None
    take_lease(broker.store, message.message_id, "another host")
    held.hold(message)
    for _ in range(100):
        clock.now += WAIT
        assert held.take(10) == []
    free_lease(broker.store, message.message_id, "another host")
    clock.now += WAIT
    assert held.take(10) == [message]


def test_what_may_start_has_its_lease_and_frees_it_if_it_goes_back(
    redelivered: Redelivered, running: set[str], clock: Clock, broker: Broker
) -> None:
    held = Redeliveries(broker, running.__contains__, lease_owner="this worker", clock=clock)
    message = redelivered()
    assert broker.store is not None
    held.hold(message)
    clock.now += WAIT
    assert held.take(0) == []
    assert lease_owner(broker.store, message.message_id) == "this worker"
    clock.now += 60  # and no thread has been free
    assert held.surplus() == [message]
    assert lease_owner(broker.store, message.message_id) is None

    held.hold(message)
    clock.now += WAIT
    held.take(0)
    assert held.close() == [message]
    assert lease_owner(broker.store, message.message_id) is None


def test_one_that_waited_for_a_thread_in_a_worker_that_stops_leaves_no_lease(
    redelivered: Redelivered, broker: Broker, working: Working
) -> None:
    message = redelivered()
    worker: Worker = working(threads=1, lease_owner="this worker")
    assert broker.store is not None
    take_lease(broker.store, message.message_id, "this worker")
    worker.give_back([message])
    assert lease_owner(broker.store, message.message_id) is None


def test_a_copy_that_goes_back_takes_no_lease_from_the_run_of_its_job(
    redelivered: Redelivered, running: set[str], clock: Clock, broker: Broker
) -> None:
    held = Redeliveries(broker, running.__contains__, lease_owner="this worker", clock=clock)
    message = redelivered()
    assert broker.store is not None
    take_lease(broker.store, message.message_id, "this worker")
    running.add(message.message_id)
    held.hold(message)
    clock.now += WAIT
    assert held.take(1) == []
    held.free_leases(held.close())
    assert lease_owner(broker.store, message.message_id) == "this worker"


def test_two_workers_that_look_at_once_dont_both_start_it(
    redelivered: Redelivered, running: set[str], clock: Clock, broker: Broker
) -> None:
    message = redelivered()
    workers = [
        Redeliveries(broker, running.__contains__, lease_owner=owner, clock=clock) for owner in ("a", "b")
    ]
    for held in workers:
        held.hold(message)
    clock.now += WAIT
    assert [held.take(1) for held in workers] == [[message], []]


def test_it_waits_while_the_store_cant_be_read(
    held: Redeliveries,
    redelivered: Redelivered,
    clock: Clock,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*args: Any) -> None:
        raise StoreUnavailable("it is away")

    message = redelivered()
    held.hold(message)
    with monkeypatch.context() as patch:
        patch.setattr(broker.store, "key_owner", away)
        clock.now += WAIT
        assert held.take(10) == []
    clock.now += LEASE - 0.1  # its lease may have run out, and who runs it is about to renew it
    assert held.take(10) == []
    clock.now += 0.6
    assert held.take(10) == [message]


def test_who_finds_its_lease_taken_asks_for_nothing_that_a_frozen_store_would_do_later(
    redelivered: Redelivered,
    running: set[str],
    clock: Clock,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Redeliveries(broker, running.__contains__, lease_owner="this worker", clock=clock)
    message = redelivered()
    assert broker.store is not None
    take_lease(broker.store, message.message_id, "another host")
    monkeypatch.setattr(broker.store, "claim_key", None)
    held.hold(message)
    clock.now += WAIT
    assert held.take(10) == []


def test_it_waits_for_as_long_as_a_lease_lasts_if_the_workers_control_couldnt_be_read(
    held: Redeliveries,
    redelivered: Redelivered,
    clock: Clock,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = redelivered()
    held.hold(message)
    steady = [0.0]
    monkeypatch.setattr(ControlWatch, "steady_for", property(lambda _: steady[0]))
    for steady[0] in (0.0, LEASE - 0.1):
        clock.now += WAIT
        assert held.take(10) == []
    steady[0] = LEASE
    clock.now += WAIT
    assert held.take(10) == [message]


def test_it_waits_until_a_process_beside_this_one_has_written_down_that_the_job_has_ended(
    held: Redeliveries, redelivered: Redelivered, clock: Clock, running: set[str]
) -> None:
    message = redelivered()
    running.add(message.message_id)
    held.hold(message)
    clock.now += WAIT
    assert held.take(10) == []
    running.clear()
    clock.now += 0.5
    assert held.take(10) == []
    clock.now += 0.6
    assert held.take(10) == [message]


def test_one_whose_claim_is_gone_is_forgotten(
    held: Redeliveries, redelivered: Redelivered, clock: Clock
) -> None:
    message = redelivered()
    held.hold(message)
    message.intake.close()
    clock.now += WAIT
    assert held.take(10) == []
    assert len(held) == 0


def test_two_copies_of_a_job_dont_start_together(
    held: Redeliveries, redelivered: Redelivered, clock: Clock
) -> None:
    message, copy = redelivered(), redelivered()
    copy.message_id = message.message_id
    for one in (message, copy):
        held.hold(one)
    clock.now += WAIT
    assert held.take(10) == [message]
    assert held.take(10) == []
    clock.now += 60
    assert held.take(10) == [copy]


def test_where_claims_are_leases_it_is_looked_at_at_once(broker: Broker, redelivered: Redelivered) -> None:
    message = redelivered()
    broker.driver.claims_are_leases = True  # type: ignore[misc]  # of this one driver only
    held = Redeliveries(broker, lambda _: False)
    held.hold(message)
    assert held.patience() == 0
    assert held.take(1) == [message]


def test_a_worker_holds_no_thread_for_it_and_gives_it_back_when_it_stops(
    broker: Broker, redelivered: Redelivered, working: Working, gate: Gate, actor: ActorDecorator
) -> None:
    message = redelivered()
    lost = message.intake
    assert isinstance(lost, StubIntake)
    lost.crash()

    @actor(category="jobs")
    def arrive() -> None:
        gate.pass_through()

    assert broker.store is not None
    take_lease(broker.store, message.message_id, "another host")
    worker: Worker = working(threads=1)
    arrive.send()
    gate.wait_for()  # behind it in the queue
    gate.open()
    assert worker.claimed >= 1
    assert worker.stop()
    counts = broker.driver.counts([QUEUE])[QUEUE]
    assert (counts.ready, counts.claimed) == (1, 0)


def test_a_copy_of_what_has_ended_goes_without_a_run(
    broker: Broker, redelivered: Redelivered, working: Working
) -> None:
    message = redelivered()
    intake = message.intake
    assert isinstance(intake, StubIntake)
    broker.before_run(message)
    broker.after_run(message, None, None)
    message.intake = _Deaf()  # its ack is lost
    broker.finish(message)
    assert broker.recorder is not None
    assert broker.recorder.flush(PATIENCE)
    copy = broker.receive(message.delivery, intake)
    assert copy is not None
    working_process = working()
    working_process._process(copy)
    counts = broker.driver.counts([QUEUE])[QUEUE]
    assert (counts.ready, counts.claimed) == (0, 0)
    assert copy.started_at is None
    record = broker.store.get(copy.message_id) if broker.store is not None else None
    assert record is not None
    assert record.state is State.SUCCEEDED


def test_a_second_job_with_the_id_of_one_that_has_ended_runs(
    broker: Broker, redelivered: Redelivered, working: Working
) -> None:
    message = redelivered()
    broker.before_run(message)
    broker.after_run(message, None, None)
    broker.finish(message)
    second = redelivered()
    second.message_id = message.message_id
    second.message_timestamp += 1000
    working()._process(second)
    assert second.started_at is not None


class _Deaf(StubIntake):
    def __init__(self) -> None:
        pass

    def ack(self, delivery: Any) -> None:
        pass
