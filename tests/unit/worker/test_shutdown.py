"""How a worker stops: nothing is lost, nothing counted, nobody waits longer than needed."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
import pytest

from callboard import RetryPolicy, State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import IntakeOptions
from callboard.brokers.stub import StubDriver
from callboard.envelope import decode_headers
from callboard.worker.worker import Worker
from tests.patience import until
from tests.unit.worker.conftest import PATIENCE, Gate, Working
from tests.unit.worker.test_worker import record_of


def _stopping(worker: Worker, **options: Any) -> tuple[threading.Thread, list[bool]]:
    """Stop a worker from another thread; the list gets what `stop` returns."""
    finished: list[bool] = []
    thread = threading.Thread(target=lambda: finished.append(worker.stop(**options)))
    thread.start()
    return thread, finished


def _attempts(driver: StubDriver, queue: str = "jobs.medium") -> list[int]:
    """How many counted runs the messages of a queue have."""
    intake = driver.open_intake(IntakeOptions(queues=[queue], budget=1000, worker="looks"))
    found = [decode_headers(delivery.headers).attempt for delivery in intake.fetch(1000, 0)]
    intake.close()
    return found


def test_unstarted_jobs_are_ready_for_others_at_once_and_running_ones_finish(
    actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    done: list[int] = []

    @actor(category="jobs")
    def short(number: int) -> None:
        done.append(number)

    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()
        done.append(-1)

    worker = working(threads=2)
    short.send_many([{"number": n} for n in range(100)])
    until(lambda: len(done) == 100)
    hold.send_many([{}] * 50)  # it claims many of them, for it takes them for short
    gate.wait_for(2)
    begun = time.monotonic()
    thread, finished = _stopping(worker, grace=PATIENCE)
    until(lambda: driver.counts(["jobs.medium"])["jobs.medium"].ready == 48)
    assert time.monotonic() - begun < 1
    assert thread.is_alive()
    gate.open()
    thread.join(PATIENCE)
    assert finished == [True]
    assert done[100:] == [-1, -1]
    assert driver.counts(["jobs.medium"])["jobs.medium"].claimed == 0


def test_what_still_runs_after_the_grace_is_interrupted_and_goes_back_uncounted(
    broker: Broker, actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    @actor(category="jobs", retries=0)
    def hold() -> None:
        gate.pass_through()

    message = hold.send()
    worker = working()
    gate.wait_for()
    assert worker.stop(grace=0.05)
    assert _attempts(driver) == [0]
    assert record_of(broker, message.message_id, State.QUEUED).reason == ""


def test_a_job_that_fails_as_it_is_interrupted_goes_back_uncounted_too(
    actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    @actor(category="jobs", retries=0)
    def untidy() -> None:
        try:
            gate.pass_through()
        finally:
            raise ConnectionError("and the cleaning up failed")

    untidy.send()
    worker = working()
    gate.wait_for()
    assert worker.stop(grace=0)
    assert _attempts(driver) == [0]


def test_an_async_job_is_interrupted_too(actor: ActorDecorator, working: Working, driver: StubDriver) -> None:
    import asyncio

    started = threading.Event()

    @actor(category="jobs", retries=0)
    async def endless() -> None:
        started.set()
        await asyncio.sleep(3600)

    endless.send()
    worker = working()
    assert started.wait(PATIENCE)
    assert worker.stop(grace=0)
    assert _attempts(driver) == [0]


def test_a_job_may_finish_what_it_does_when_it_is_interrupted(
    actor: ActorDecorator, working: Working, gate: Gate, broker: Broker
) -> None:
    @actor(category="jobs")
    def careful() -> None:
        try:
            gate.pass_through()
        except dramatiq.middleware.Shutdown:
            current_job().checkpoint({"row": 17})
            raise

    message = careful.send()
    worker = working()
    gate.wait_for()
    assert worker.stop(grace=0)
    assert broker.load_checkpoint(message.message_id) == b'{"row":17}'


def test_a_job_that_fails_within_the_grace_is_retried_as_always(
    broker: Broker, actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    @actor(category="jobs", retries=RetryPolicy(jitter=False))
    def bad() -> None:
        gate.pass_through()
        raise ValueError("no")

    message = bad.send()
    worker = working()
    gate.wait_for()
    thread, finished = _stopping(worker, grace=PATIENCE)
    gate.open()
    thread.join(PATIENCE)
    assert finished == [True]
    assert driver.counts(["jobs.medium"])["jobs.medium"].delayed == 1
    assert record_of(broker, message.message_id, State.RETRYING).error == "no"


def test_a_second_order_ends_the_grace(
    actor: ActorDecorator, working: Working, gate: Gate, driver: StubDriver
) -> None:
    @actor(category="jobs")
    def hold() -> None:
        gate.pass_through()

    hold.send()
    worker = working()
    gate.wait_for()
    thread, finished = _stopping(worker, grace=3600)
    until(lambda: worker._shutdown is not None)
    worker.hurry()
    thread.join(PATIENCE)
    assert finished == [True]
    assert _attempts(driver) == [0]


def test_what_cannot_be_interrupted_stays_claimed_while_it_runs(
    actor: ActorDecorator, working: Working, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.worker.shutdown.INTERRUPT_SECONDS", 0.1)
    started, release = threading.Event(), threading.Event()

    @actor(category="jobs")
    def deaf() -> None:
        started.set()
        release.wait(PATIENCE)  # one long wait, which sees no exception before it is over

    deaf.send()
    worker = working()
    assert started.wait(PATIENCE)
    assert not worker.stop(grace=0)
    assert driver.counts(["jobs.medium"])["jobs.medium"].claimed == 1
    release.set()
    until(lambda: driver.counts(["jobs.medium"])["jobs.medium"].claimed == 0)


def test_an_idle_worker_stops_at_once(actor: ActorDecorator, working: Working) -> None:
    @actor(category="jobs")
    def never() -> None: ...

    worker = working()
    begun = time.monotonic()
    assert worker.stop(grace=PATIENCE)
    assert time.monotonic() - begun < 5
    assert not any(thread.is_alive() for thread in worker._runners)
