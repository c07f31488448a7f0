"""The worker runs what it claims, holds no more than it needs, and outlives whatever jobs and hooks do."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
from dramatiq import Middleware

from callboard import Priority, State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import Delivery, Intake
from callboard.brokers.stub import StubDriver, StubIntake
from callboard.context import Run
from callboard.store.base import Record
from callboard.worker.slots import SlotMemory
from callboard.worker.worker import Worker
from tests.patience import until
from tests.unit.worker.conftest import PATIENCE, Gate, Working


def record_of(broker: Broker, job_id: str, *states: State) -> Record:
    """A job's record, when it has one of these states."""
    assert broker.store is not None

    def found() -> Record | None:
        assert broker.recorder is not None
        broker.recorder.flush(PATIENCE)
        record = broker.store.get(job_id) if broker.store is not None else None
        return record if record is not None and record.state in states else None

    record: Record = until(found)
    return record


# -- running -------------------------------------------------------------------------------------------------


def test_jobs_run_and_their_messages_go(
    broker: Broker, actor: ActorDecorator, working: Working, driver: StubDriver
) -> None:
    seen: list[int] = []

    @actor(category="jobs")
    def note(number: int) -> None:
        seen.append(number)

    note.send_many([{"number": n} for n in range(1000)])
    working()
    until(lambda: len(seen) == 1000)
    assert sorted(seen) == list(range(1000))
    broker.join("jobs.medium", timeout=30_000)


def test_as_many_run_at_once_as_there_are_threads(
    actor: ActorDecorator, working: Working, gate: Gate
) -> None:
    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    hold.send_many([{}] * 5)
    worker = working(threads=3)
    gate.wait_for(3)
    assert len(worker.running) == 3
    gate.open()
    gate.wait_for(2)


def test_a_worker_without_threads_is_refused(broker: Broker) -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        Worker(broker, [], threads=0)


def test_the_most_urgent_starts_when_the_next_thread_is_free(
    actor: ActorDecorator, working: Working, gate: Gate
) -> None:
    order: list[str] = []

    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    @actor(category="jobs")
    def note(name: str) -> None:
        order.append(name)

    hold.send()
    working(threads=1)
    gate.wait_for()
    for n in range(3):
        note.using(priority=Priority.LOW).send(f"low {n}")
    for n in range(3):
        note.using(priority=Priority.CRITICAL).send(f"critical {n}")
    gate.open()
    until(lambda: len(order) == 6)
    assert order == ["critical 0", "critical 1", "critical 2", "low 0", "low 1", "low 2"]


def test_low_jobs_do_not_starve(actor: ActorDecorator, working: Working, gate: Gate) -> None:
    order: list[str] = []

    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    @actor(category="jobs")
    def note(name: str) -> None:
        order.append(name)

    hold.send()
    working(threads=1)
    gate.wait_for()
    note.using(priority=Priority.LOW).send("low")
    for n in range(40):
        note.using(priority=Priority.CRITICAL).send(f"critical {n}")
    gate.open()
    until(lambda: len(order) == 41)
    assert order.index("low") <= 2 * 8, "of every eight, one is the oldest"


def test_a_thread_that_becomes_free_gets_what_waits_at_once(
    actor: ActorDecorator, working: Working, gate: Gate
) -> None:
    ended, started = threading.Event(), threading.Event()
    times: dict[str, float] = {}

    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    @actor(category="jobs")
    def short() -> None:
        ended.wait(PATIENCE)
        times["end"] = time.monotonic()

    @actor(category="jobs")
    def late() -> None:
        times["start"] = time.monotonic()
        started.set()

    for _ in range(7):
        hold.send()
    short.send()
    worker = working(threads=8)
    until(lambda: len(worker.running) == 8)
    late.send()
    ended.set()
    assert started.wait(PATIENCE)
    assert (
        times["start"] - times["end"] < 0.5
    )  # it takes a millisecond; a nap of the claimer would take one second


def test_what_runs_can_be_read_from_the_slots(actor: ActorDecorator, working: Working, gate: Gate) -> None:
    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    slots = SlotMemory(processes=1, threads=2).of(0)
    sent = [hold.send().message_id, hold.send().message_id]
    working(threads=2, slots=slots)
    gate.wait_for(2)
    assert sorted(slots.running()) == sorted(sent)
    gate.open()
    until(lambda: slots.running() == [])


# -- holding little ------------------------------------------------------------------------------------------


def test_a_worker_of_long_jobs_hoards_none(
    broker: Broker, actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    hold.send_many([{}] * 40)
    first = working(threads=4)
    gate.wait_for(4)
    assert driver.counts(["jobs.medium"])["jobs.medium"].claimed == 4
    second = working(threads=4)
    gate.wait_for(4)
    assert (first.claimed, second.claimed) == (0, 0)
    assert driver.counts(["jobs.medium"])["jobs.medium"].ready == 32


def test_what_was_claimed_in_expectation_of_short_jobs_goes_back_when_they_turn_out_long(
    broker: Broker, actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    done: list[int] = []

    @actor(category="jobs")
    def short(number: int) -> None:
        done.append(number)

    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    worker = working(threads=2)
    short.send_many([{"number": n} for n in range(200)])
    until(lambda: len(done) == 200)
    hold.send_many([{}] * 50)
    gate.wait_for(2)
    until(lambda: driver.counts(["jobs.medium"])["jobs.medium"].claimed == 2 and worker.claimed == 0)
    other = working(threads=2)
    gate.wait_for(2)
    gate.open()
    broker.join("jobs.medium", timeout=30_000)
    assert other.claimed == 0


def test_two_workers_share_jobs_of_all_lengths_evenly(
    actor: ActorDecorator, working: Working, broker: Broker
) -> None:
    seconds = [0.0, 0.001, 0.01, 0.3]
    busy: dict[str, float] = {}
    lock = threading.Lock()
    done = threading.Semaphore(0)

    @actor(category="jobs")
    def work(seconds: float) -> None:
        time.sleep(seconds)
        with lock:
            busy[threading.current_thread().name] = busy.get(threading.current_thread().name, 0.0) + seconds
        done.release()

    workers = [working(threads=4), working(threads=4)]
    for number, worker in enumerate(workers):
        for thread in worker._runners:
            thread.name = f"{number}-{thread.name}"
    work.send_many([{"seconds": seconds[n % 4]} for n in range(240)])
    for _ in range(240):
        assert done.acquire(timeout=PATIENCE)
    loads = [sum(load for name, load in busy.items() if name.startswith(f"{n}-")) for n in range(2)]
    assert min(loads) > 0.75 * max(loads), loads


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy with long jobs"])
def test_a_worker_with_nothing_to_claim_costs_nothing(
    busy: bool, actor: ActorDecorator, working: Working, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    rooms: list[int] = []
    counted = Worker._room

    def room(self: Worker) -> tuple[int, float]:
        rooms.append(1)
        return counted(self)

    monkeypatch.setattr(Worker, "_room", room)
    if busy:
        hold.send_many([{}] * 20)
    worker = working(threads=4)
    if busy:
        gate.wait_for(4)
    settled = len(until(lambda: rooms if worker.claimed == 0 else None))
    time.sleep(1.5)  # the span over which its looks are counted
    assert len(rooms) - settled <= 6, "it looks about once a second"


# -- surviving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd"), RecursionError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_job_raises_is_its_own_failure(
    error: BaseException, broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    done = threading.Event()

    @actor(category="jobs", retries=0)
    def bad() -> None:
        raise error

    @actor(category="jobs")
    def good() -> None:
        done.set()

    worker = working(threads=1)
    message = bad.send()
    good.send()
    assert done.wait(PATIENCE)
    assert record_of(broker, message.message_id, State.DEAD).error_type == type(error).__name__
    assert all(thread.is_alive() for thread in worker._runners)


def test_sys_exit_in_a_job_ends_neither_the_thread_nor_the_process(
    broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    done = threading.Event()

    @actor(category="jobs", retries=0)
    def leave() -> None:
        sys.exit("gone")

    @actor(category="jobs")
    def good() -> None:
        done.set()

    working(threads=1)
    message = leave.send()
    good.send()
    assert done.wait(PATIENCE)
    assert "gone" in record_of(broker, message.message_id, State.DEAD).error


def _failing_once(hook: str, error: BaseException) -> Middleware:
    """A middleware that fails in one hook, the first time. Of a class of its own: hooks are found by class."""
    failures = [error]

    def fail(self: Middleware, *args: Any, **kwargs: Any) -> None:
        if failures:
            raise failures.pop()

    made: Middleware = type("Failing", (Middleware,), {hook: fail})()
    return made


@pytest.mark.parametrize("error", [RuntimeError("hook"), SystemExit(1)], ids=["error", "exit"])
@pytest.mark.parametrize(
    "hook",
    [
        "before_process_message",
        "after_process_message",
        "before_ack",
        "after_ack",
        "after_worker_thread_boot",
    ],
)
def test_a_hook_that_fails_kills_no_thread_and_loses_no_job(
    hook: str, error: BaseException, broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    seen: list[str] = []

    @actor(category="jobs")
    def note(name: str) -> None:
        seen.append(name)

    broker.add_middleware(_failing_once(hook, error))
    worker = working(threads=1)
    note.send("a")
    note.send("b")
    until(lambda: {"a", "b"} <= set(seen))
    broker.join("jobs.medium", timeout=30_000)
    assert all(thread.is_alive() for thread in worker._runners)


def test_a_settling_that_fails_kills_no_thread(
    broker: Broker, actor: ActorDecorator, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @actor(category="jobs")
    def note(name: str) -> None:
        seen.append(name)

    ack, failures = StubIntake.ack, ["once"]

    def fail(self: Intake, delivery: Delivery) -> None:
        if failures:
            failures.pop()
            raise RuntimeError("the ack failed")
        ack(self, delivery)  # type: ignore[arg-type]

    monkeypatch.setattr(StubIntake, "ack", fail)
    worker = working(threads=1)
    note.send("a")
    note.send("b")
    until(lambda: {"a", "b"} <= set(seen))
    broker.join("jobs.medium", timeout=30_000)
    assert worker._runners[0].is_alive()


def test_a_claiming_that_fails_goes_on(
    actor: ActorDecorator, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    @actor(category="jobs")
    def note() -> None:
        done.set()

    fetch, failures = StubIntake.fetch, ["once"]

    def fail(self: StubIntake, limit: int, timeout: float) -> list[Delivery]:
        if failures:
            failures.pop()
            raise RuntimeError("the driver failed")
        return fetch(self, limit, timeout)

    monkeypatch.setattr(StubIntake, "fetch", fail)
    working()
    note.send()
    assert done.wait(PATIENCE)
    assert not failures


# -- async ---------------------------------------------------------------------------------------------------


def test_async_jobs_see_themselves_and_run_beside_each_other(
    broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    import asyncio

    seen: dict[str, str] = {}
    together = threading.Barrier(3)

    async def inner(name: str) -> None:
        seen[name] = current_job().id

    @actor(category="jobs")
    async def meet(name: str) -> None:
        await asyncio.gather(inner(name), asyncio.to_thread(together.wait, PATIENCE))

    sent = {name: meet.send(name).message_id for name in ("a", "b")}
    working()
    together.wait(PATIENCE)
    broker.join("jobs.medium", timeout=30_000)
    assert seen == sent


def test_a_time_limit_ends_an_async_job(broker: Broker, actor: ActorDecorator, working: Working) -> None:
    import asyncio
    from datetime import timedelta

    cleaned = threading.Event()

    @actor(category="jobs", retries=0, time_limit=timedelta(milliseconds=100))
    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.set()

    working()
    message = endless.send()
    assert cleaned.wait(PATIENCE)
    assert record_of(broker, message.message_id, State.DEAD).error_type == "TimeLimitExceeded"


# -- control -------------------------------------------------------------------------------------------------


def test_a_paused_queue_is_left_alone_within_a_second_and_resumed_as_fast(
    broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    seen: list[str] = []

    @actor(category="jobs")
    def note(name: str) -> None:
        seen.append(name)

    assert broker.store is not None
    assert broker.control is not None
    broker.store.pause("jobs.low")
    working()
    note.using(priority=Priority.LOW).send("low")
    note.send("medium")
    until(lambda: "medium" in seen)
    broker.store.pause("jobs.medium")
    until(lambda: broker.control is not None and "jobs.medium" in broker.control.paused)
    note.send("second")
    time.sleep(0.3)
    assert seen == ["medium"]
    broker.store.resume("jobs.low")
    broker.store.resume("jobs.medium")
    until(lambda: sorted(seen) == ["low", "medium", "second"])


def test_a_running_job_learns_that_it_is_cancelled(
    broker: Broker, actor: ActorDecorator, working: Working
) -> None:
    started, ended = threading.Event(), threading.Event()
    runs: list[Run] = []

    @actor(category="jobs")
    def long() -> None:
        runs.append(current_job())
        started.set()
        until(current_job().cancelled)
        ended.set()

    working()
    message = long.send()
    assert started.wait(PATIENCE)
    assert broker.store is not None
    broker.store.cancel(message.message_id, at=time.time())
    assert ended.wait(PATIENCE)
