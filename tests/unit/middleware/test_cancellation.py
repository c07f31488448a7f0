"""A job that is cancelled never starts, or is told, then interrupted; and none of that is a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry

from callboard import Snooze, State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.store.base import Record, Store
from callboard.store.control import ControlWatch
from callboard.worker.worker import Worker
from middleware import stack
from tests.patience import until

PATIENCE = 30.0


@pytest.fixture
def store() -> Store:
    return open_store("memory:")


@pytest.fixture
def broker(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    broker.control = ControlWatch(store, interval=0.02)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: Broker) -> ActorDecorator:
    return ActorDecorator(broker)


@pytest.fixture
def working(broker: Broker) -> Iterator[Callable[[], None]]:
    workers: list[Worker] = []

    def start() -> None:
        worker = Worker(broker, sorted(broker.queues), threads=2)
        worker.start()
        workers.append(worker)

    yield start
    for worker in workers:
        worker.stop(grace=10)


def ended(broker: Broker, job_id: str) -> Record:
    """A job's record, when it has ended."""

    def found() -> Record | None:
        assert broker.recorder is not None
        assert broker.store is not None
        broker.recorder.flush(PATIENCE)
        record = broker.store.get(job_id)
        return record if record is not None and record.state.is_end else None

    record: Record = until(found)
    return record


def cancelled_in_mid_run(broker: Broker, message: dramatiq.Message[Any], started: threading.Event) -> Record:
    """Cancel a job when it has started; its record, when it has ended."""
    assert started.wait(PATIENCE)
    assert broker.store is not None
    broker.store.cancel(message.message_id, at=time.time())
    return ended(broker, message.message_id)


def texts(record: Record) -> list[str]:
    return [event.text for event in record.events]


def test_a_run_that_does_not_look_is_told_and_then_interrupted(
    broker: Broker, store: Store, actor: ActorDecorator, working: Callable[[], None]
) -> None:
    started, tidied = threading.Event(), threading.Event()

    @actor(category="jobs", cancel_grace=timedelta(milliseconds=50))
    def deaf() -> None:
        started.set()
        try:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                time.sleep(0.005)
        finally:
            tidied.set()

    working()
    message = deaf.send()
    record = cancelled_in_mid_run(broker, message, started)
    assert (record.state, record.reason) == (
        State.CANCELLED,
        "cancelled while it ran, and interrupted after 0.05 s",
    )
    assert tidied.is_set()
    story = texts(record)
    told = story.index("told that it is cancelled; it is interrupted if it runs on for 0.05 s")
    interrupted = story.index("interrupted, 0.05 s after it was told that it is cancelled")
    assert told < interrupted < story.index(record.reason)
    until(lambda: not store.is_cancelled(message.message_id))


@pytest.mark.parametrize("error", [ValueError("half done"), Snooze(timedelta(seconds=1))])
def test_what_a_cancelled_job_raises_is_no_failure_and_is_not_tried_again(
    broker: Broker, actor: ActorDecorator, working: Callable[[], None], error: Exception
) -> None:
    started, told = threading.Event(), []

    @actor(category="jobs")
    def tell(job: Any, failure: Any) -> None:
        told.append(failure)

    @actor(category="jobs", on_failure="tell", on_retry_exhausted="tell")
    def brittle() -> None:
        started.set()
        until(current_job().cancelled)
        raise error

    working()
    message = brittle.send()
    record = cancelled_in_mid_run(broker, message, started)
    assert record.state is State.CANCELLED
    assert record.reason == f"cancelled while it ran, and ended by {type(error).__name__}: {error}"
    assert not record.error
    broker.join("jobs.medium", timeout=30_000)
    assert told == []


@pytest.mark.parametrize("result", [None, 7])
def test_a_job_that_succeeds_all_the_same_has_succeeded_and_its_record_says_so(
    broker: Broker, store: Store, actor: ActorDecorator, working: Callable[[], None], result: Any
) -> None:
    started = threading.Event()

    @actor(category="jobs")
    def heedless() -> Any:
        started.set()
        until(current_job().cancelled)
        return result

    working()
    message = heedless.send()
    record = cancelled_in_mid_run(broker, message, started)
    assert (record.state, record.reason) == (
        State.SUCCEEDED,
        "its cancellation came too late: it had succeeded",
    )
    until(lambda: not store.is_cancelled(message.message_id))


def test_an_async_job_is_interrupted_too(
    broker: Broker, actor: ActorDecorator, working: Callable[[], None]
) -> None:
    import asyncio

    started = threading.Event()

    @actor(category="jobs", cancel_grace=timedelta(0))
    async def deaf() -> None:
        started.set()
        await asyncio.sleep(PATIENCE)

    working()
    message = deaf.send()
    record = cancelled_in_mid_run(broker, message, started)
    assert (record.state, record.reason) == (
        State.CANCELLED,
        "cancelled while it ran, and interrupted after 0 s",
    )


def test_failures_are_told_and_snoozes_are_not(
    broker: Broker, actor: ActorDecorator, working: Callable[[], None]
) -> None:
    told: list[str] = []
    snoozed = threading.Event()

    @actor(category="jobs")
    def tell(job: Any, failure: Any) -> None:
        told.append(failure["type"])

    @actor(category="jobs", on_failure="tell", retries=0)
    def restless() -> None:
        if not snoozed.is_set():
            snoozed.set()
            raise Snooze(timedelta(milliseconds=1))
        raise ValueError("no")

    working()
    message = restless.send()
    assert ended(broker, message.message_id).state is State.DEAD
    broker.join("jobs.medium", timeout=30_000)
    until(lambda: told)
    assert told == ["ValueError"]
