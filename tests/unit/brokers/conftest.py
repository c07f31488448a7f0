"""A broker with the whole stack, in memory, and a worker that a test can start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry

from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import Delivery, Intake, IntakeOptions
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware import stack


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True, scope="module")
def failures_are_logged_fast(plain_tracebacks: None) -> None:
    """Many jobs fail here."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    store = open_store("memory:")
    metrics = Metrics(CollectorRegistry())
    broker = Broker(
        StubDriver(clock=clock), store=store, middleware=stack(store, metrics=metrics), clock=clock
    )
    # As an application's broker.py does: Dramatiq's pipelines and groups go to the global broker.
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: Broker) -> ActorDecorator:
    return ActorDecorator(broker)


@pytest.fixture
def intake(broker: Broker) -> Intake:
    """A hand on the queues that the tests use."""
    names = [f"jobs.{word}" for word in ("critical", "high", "medium", "low")]
    return broker.driver.open_intake(IntakeOptions(queues=[*names, "default"], budget=1000, worker="test"))


@pytest.fixture
def claim(intake: Intake) -> Callable[[], list[Delivery]]:
    """Claims what waits, without any rule of the broker."""
    return lambda: intake.fetch(1000, 0)


@pytest.fixture
def working(broker: Broker) -> Iterator[Callable[..., Worker]]:
    """Starts workers, and stops them at the end."""
    workers: list[Worker] = []

    def start(**options: Any) -> Worker:
        worker = Worker(broker, sorted(broker.queues), **options)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop(grace=10)
