"""Who has a job that runs: leases in the store, written from the slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from callboard import LeaseLost, State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver, StubIntake
from callboard.context import enter_run
from callboard.errors import StoreUnavailable
from callboard.operations.why import explain, gather
from callboard.process import worker_name
from callboard.states import order
from callboard.store import open_store
from callboard.store.base import Change, Store
from callboard.store.leases import LEASE, free_lease, lease_owner, take_lease
from callboard.store.results import StoreResultBackend
from callboard.worker.leases import HELD_FROM, Fence, Leases, needs_leases
from callboard.worker.redeliveries import WAIT
from callboard.worker.slots import LOST, SlotMemory
from tests.unit.worker.conftest import PATIENCE, Gate, Working

ME, OTHER = "host-a:1:x", "host-b:2:y"


class Network(StubDriver):
    """A driver that takes claims back from workers that live, as RabbitMQ does."""

    claims_are_leases = False


class Clock:
    """Moves on by itself as real time does, and further when it is told to."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def driver() -> StubDriver:
    return Network()


@pytest.fixture
def store() -> Store:
    return open_store("memory:")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory() -> SlotMemory:
    memory = SlotMemory(processes=2, threads=2)
    memory.give(0, 4711)
    return memory


@pytest.fixture
def leases(memory: SlotMemory, clock: Clock) -> Leases:
    return Leases(memory, ME, clock=clock)


def test_a_run_has_a_lease_once_it_is_long(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    slots = memory.of(0)
    slots.start(1, "job")
    leases.look(store)
    assert lease_owner(store, "job") is None
    clock.ahead += HELD_FROM
    leases.look(store)
    assert lease_owner(store, "job") == ME
    run = slots.run_of(1)
    assert run is not None
    assert run.lease == pytest.approx(clock() + LEASE, abs=1.0)


def test_a_short_run_costs_no_word_with_the_store(leases: Leases, memory: SlotMemory, store: Store) -> None:
    slots = memory.of(0)
    slots.start(0, "job")
    slots.end(0)
    leases.look(_Away())  # type: ignore[arg-type]
    assert lease_owner(store, "job") is None


def test_it_is_freed_a_second_after_the_job_has_ended(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    memory.of(0).start(0, "job")
    clock.ahead += HELD_FROM
    leases.look(store)
    memory.of(0).end(0)
    leases.look(store)
    assert lease_owner(store, "job") == ME  # its record may not be written yet
    clock.ahead += 1.5
    leases.look(store)
    assert lease_owner(store, "job") is None


def test_it_is_freed_at_once_when_the_last_process_has_ended(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    memory.of(0).start(0, "job")
    clock.ahead += HELD_FROM
    leases.look(store)
    memory.of(0).clear()
    memory.give(0, 0)
    leases.look(store)
    assert lease_owner(store, "job") is None


def test_the_next_run_of_the_same_job_keeps_it(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    memory.of(0).start(0, "job")
    clock.ahead += HELD_FROM
    leases.look(store)
    memory.of(0).end(0)
    leases.look(store)
    memory.of(1).start(0, "job")
    clock.ahead += 1.5
    leases.look(store)
    assert lease_owner(store, "job") == ME
    run = memory.of(1).run_of(0)
    assert run is not None
    assert run.lease is not None


def test_a_run_whose_lease_somebody_else_has_taken_has_lost_it(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    slots = memory.of(0)
    slots.start(1, "job")
    clock.ahead += HELD_FROM
    leases.look(store)
    free_lease(store, "job", ME)  # it has run out: this worker was frozen
    take_lease(store, "job", OTHER)
    clock.ahead += LEASE
    leases.look(store)
    assert slots.threads_that_lost() == [1]
    slots.end(1)
    clock.ahead += 60
    leases.look(store)
    assert lease_owner(store, "job") == OTHER
    slots.start(1, "another job")
    assert slots.threads_that_lost() == []


def test_another_process_that_goes_on_with_the_leases_knows_which_are_lost(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    memory.of(0).start(0, "job")
    memory.of(0).start(1, "lost")
    clock.ahead += HELD_FROM
    leases.look(store)
    free_lease(store, "lost", ME)
    take_lease(store, "lost", OTHER)
    clock.ahead += LEASE / 2
    leases.look(store)
    successor = Leases(memory, ME, clock=clock)
    free_lease(store, "lost", OTHER)
    successor.look(store)
    assert memory.of(0).threads_that_lost() == [1]
    assert (lease_owner(store, "job"), lease_owner(store, "lost")) == (ME, None)


def test_what_an_earlier_run_has_left_is_waited_out(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    """A retry may start elsewhere before the lease of the attempt that failed is freed."""
    take_lease(store, "job", OTHER)
    memory.of(0).start(0, "job")
    for _ in range(5):
        clock.ahead += 1.0
        leases.look(store)
        assert memory.of(0).threads_that_lost() == []
    free_lease(store, "job", OTHER)
    clock.ahead += 1.0
    leases.look(store)
    assert lease_owner(store, "job") == ME


def test_one_that_is_renewed_elsewhere_all_the_time_is_somebody_elses(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    take_lease(store, "job", OTHER)
    memory.of(0).start(0, "job")
    clock.ahead += HELD_FROM
    for _ in range(30):
        leases.look(store)
        clock.ahead += 0.5
    assert memory.of(0).threads_that_lost() == [0]


def test_while_the_store_is_away_nothing_is_lost(
    leases: Leases, memory: SlotMemory, store: Store, clock: Clock
) -> None:
    memory.of(0).start(0, "job")
    clock.ahead += HELD_FROM
    leases.look(store)
    clock.ahead += 3 * LEASE
    leases.look(_Away())  # type: ignore[arg-type]
    assert memory.of(0).threads_that_lost() == []
    free_lease(store, "job", ME)  # it has run out
    clock.ahead += 1.0
    leases.look(store)
    assert lease_owner(store, "job") == ME


class _Away:
    """A store that can't be reached."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the store is away")

        return fail


# -- what a run that has lost its lease may do ---------------------------------------------------------------


def test_it_is_interrupted_and_what_it_came_to_is_not_recorded(
    broker: Broker, actor: ActorDecorator, working: Working, memory: SlotMemory, gate: Gate
) -> None:
    late: list[str] = []

    @actor(category="jobs", store_results=True)
    def work() -> str:
        if late:
            return "in time"
        try:
            gate.pass_through()
        except LeaseLost:
            current_job().progress(0.9, "late")
            with pytest.raises(LeaseLost):
                current_job().checkpoint({"by": "the late run"})
            late.append(current_job().id)
        return "late"

    store, recorder = broker.store, broker.recorder
    assert store is not None
    assert recorder is not None
    working(threads=1, slots=memory.of(0), lease_owner=ME)
    message = work.send()
    gate.wait_for()
    time.sleep(HELD_FROM)  # before that, no run has a lease
    run = memory.of(0).run_of(0)
    assert run is not None
    memory.set_lease(run, LOST)

    broker.join("jobs.medium", timeout=int(PATIENCE * 1000))
    recorder.flush(PATIENCE)
    record = store.get(message.message_id)
    assert record is not None
    assert late == [message.message_id]
    assert broker.load_checkpoint(message.message_id) is None
    assert record.progress_note != "late"
    # Nobody else had its message, so it came again, and that run counts.
    assert message.get_result(backend=StoreResultBackend(store)) == "in time"
    assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
    assert any("another worker has the job" in event.text for event in record.events)


def test_its_failure_is_no_failure_of_the_job(
    broker: Broker, actor: ActorDecorator, working: Working, memory: SlotMemory, gate: Gate
) -> None:
    runs: list[int] = []

    @actor(category="jobs", retries=0)
    def work() -> None:
        runs.append(current_job().attempt)
        if len(runs) == 1:
            try:
                gate.pass_through()
            finally:
                raise RuntimeError("cleaning up failed")

    working(threads=1, slots=memory.of(0), lease_owner=ME)
    work.send()
    gate.wait_for()
    time.sleep(HELD_FROM)
    run = memory.of(0).run_of(0)
    assert run is not None
    memory.set_lease(run, LOST)
    broker.join("jobs.medium", timeout=int(PATIENCE * 1000))
    assert runs == [1, 1]
    assert broker.driver.counts(["jobs.dead"])["jobs.dead"].ready == 0


class _Run:
    """A run whose lease has run out, and what its fence says."""

    def __init__(self, broker: Broker, actor: ActorDecorator, memory: SlotMemory, clock: Clock) -> None:
        @actor(category="jobs")
        def work() -> None:
            pass

        self.id = work.send().message_id
        self.intake = broker.open_intake(["jobs.medium"], budget=1)
        (delivery,) = self.intake.fetch(1, PATIENCE)
        message = broker.receive(delivery, self.intake)
        assert message is not None
        self.message = message
        slots = memory.of(0)
        self.fence = Fence(broker, slots, ME, clock=clock)
        slots.start(1, self.id)
        run = slots.run_of(1)
        assert run is not None
        memory.set_lease(run, clock() - 1.0)
        broker.before_run(message)
        assert message.run is not None
        message.run.started -= HELD_FROM

    def holds(self) -> bool:
        return self.fence.holds(self.message, 1)


@pytest.fixture
def late(broker: Broker, actor: ActorDecorator, memory: SlotMemory, clock: Clock) -> Iterator[_Run]:
    yield _Run(broker, actor, memory, clock)
    enter_run(None)


def test_a_lease_that_has_run_out_is_taken_anew_if_nobody_has_come(late: _Run, broker: Broker) -> None:
    assert broker.store is not None
    assert late.holds()
    assert lease_owner(broker.store, late.id) == ME


def test_it_is_gone_if_somebody_has_it(late: _Run, broker: Broker) -> None:
    assert broker.store is not None
    take_lease(broker.store, late.id, OTHER)
    assert not late.holds()


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED, State.RETRYING])
def test_it_is_gone_if_somebody_has_come_and_gone(late: _Run, broker: Broker, state: State) -> None:
    assert broker.store is not None
    hop = state is State.RETRYING
    change = Change(job_id=late.id, order=order(hop, state), state=state, at=time.time(), worker="host-b:9:z")
    broker.store.write([change])
    assert not late.holds()


def test_a_record_of_its_own_or_of_an_earlier_attempt_takes_nothing_from_it(
    late: _Run, broker: Broker
) -> None:
    assert broker.store is not None
    for state, worker in ((State.QUEUED, "host-b:9:z"), (State.RUNNING, worker_name())):
        broker.store.write(
            [Change(job_id=late.id, order=order(0, state), state=state, at=time.time(), worker=worker)]
        )
        assert late.holds()


def test_while_the_store_is_away_the_claim_decides(
    late: _Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "store", _Away())
    assert late.holds()
    assert isinstance(late.intake, StubIntake)
    late.intake.crash()
    with pytest.raises(StoreUnavailable):
        late.holds()


def test_a_run_that_ends_while_the_store_is_away_and_its_claim_is_gone_waits_for_the_store(
    late: _Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(late.intake, StubIntake)
    late.intake.crash()
    store, asked = broker.store, threading.Semaphore(0)
    assert store is not None

    def claim_key(*args: Any, **options: Any) -> str:
        asked.release()
        raise StoreUnavailable("it is away")

    answers: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_key", claim_key)
        end = threading.Thread(target=lambda: answers.append(late.fence.holds_at_its_end(late.message, 1)))
        end.start()
        assert asked.acquire(timeout=PATIENCE)
        assert asked.acquire(timeout=PATIENCE)
        assert answers == []
    end.join(PATIENCE)
    assert answers == [True]


def test_it_waits_no_longer_than_its_worker_runs(
    late: _Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(late.intake, StubIntake)
    late.intake.crash()
    monkeypatch.setattr(broker, "store", _Away())
    broker.stopping.set()
    assert not late.fence.holds_at_its_end(late.message, 1)


class _Unleased(_Run):
    """A long run that never had a lease: its host was frozen as it had just begun, for instance."""

    def __init__(self, broker: Broker, actor: ActorDecorator, memory: SlotMemory, clock: Clock) -> None:
        super().__init__(broker, actor, memory, clock)
        memory.of(0).start(1, self.id)
        assert self.message.run is not None
        self.message.run.started -= WAIT


@pytest.fixture
def unleased(broker: Broker, actor: ActorDecorator, memory: SlotMemory, clock: Clock) -> Iterator[_Unleased]:
    yield _Unleased(broker, actor, memory, clock)
    enter_run(None)


def test_a_late_runs_progress_is_not_recorded(late: _Run, broker: Broker) -> None:
    assert broker.store is not None
    assert broker.recorder is not None
    run = late.message.run
    assert run is not None
    run.still_ours = partial(late.fence.holds, late.message, 1)
    take_lease(broker.store, late.id, OTHER)
    run.progress(0.5, "late")
    assert broker.recorder.flush(PATIENCE)
    record = broker.store.get(late.id)
    assert record is not None
    assert record.progress_note != "late"


def test_a_long_run_without_a_lease_is_the_jobs_if_nobody_has_come(unleased: _Unleased) -> None:
    assert unleased.holds()
    assert isinstance(unleased.intake, StubIntake)
    unleased.intake.crash()
    assert unleased.holds()


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED])
def test_a_long_run_without_a_lease_is_late_if_somebody_has_come(
    unleased: _Unleased, broker: Broker, state: State
) -> None:
    assert broker.store is not None
    change = Change(
        job_id=unleased.id, order=order(0, state), state=state, at=time.time(), worker="host-b:9:z"
    )
    broker.store.write([change])
    assert not unleased.holds()


def test_a_long_run_without_a_lease_is_late_if_its_claim_is_gone_and_somebody_has_a_lease(
    unleased: _Unleased, broker: Broker
) -> None:
    assert broker.store is not None
    take_lease(broker.store, unleased.id, OTHER)
    assert unleased.holds()  # an earlier attempt may have left it
    assert isinstance(unleased.intake, StubIntake)
    unleased.intake.crash()
    assert not unleased.holds()


def test_a_long_run_without_a_lease_is_the_jobs_while_the_store_is_away(
    unleased: _Unleased, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "store", _Away())
    assert isinstance(unleased.intake, StubIntake)
    unleased.intake.crash()
    assert unleased.holds()


# -- who needs leases, and what is said of them --------------------------------------------------------------


def test_only_a_broker_that_takes_claims_from_living_workers_needs_them(broker: Broker) -> None:
    assert needs_leases(broker)
    assert not needs_leases(Broker(Network(), one_host=True))
    assert not needs_leases(Broker(StubDriver(), store=broker.store, one_host=True))


def test_why_says_who_has_the_lease_of_a_job_whose_worker_is_silent(late: _Run, broker: Broker) -> None:
    assert broker.store is not None
    change = Change(
        job_id=late.id,
        order=order(0, State.RUNNING),
        state=State.RUNNING,
        at=time.time(),
        worker="host-b:9:z",
    )
    broker.store.write([change])
    take_lease(broker.store, late.id, OTHER)
    why = explain(gather(broker, late.id))
    assert "the worker on host-b:2 still has its lease" in why.sentence
    assert why.facts["lease"] == "host-b:2"


def test_why_says_that_a_redelivered_job_waits_for_the_store(
    late: _Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "store", _Away())
    sentence = explain(gather(broker, late.id)).sentence
    assert "a job that the broker delivered before waits until it can" in sentence
