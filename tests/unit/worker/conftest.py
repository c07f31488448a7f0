"""A broker with the whole stack, in memory, and workers that a test can start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware import stack

PATIENCE = 30.0  # seconds that an event may take on a slow machine; none should need them

Working = Callable[..., Worker]


class Gate:
    """Holds jobs until a test opens it, and says when they have come."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def pass_through(self) -> None:
        """For the job: tell that it is here, and wait. In short naps, so that it can be interrupted."""
        self._arrived.release()
        while not self._open.wait(0.01):
            pass

    def wait_for(self, count: int = 1) -> None:
        """For the test: until so many have come."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=PATIENCE)

    def open(self) -> None:
        self._open.set()


@pytest.fixture(autouse=True, scope="module")
def failures_are_logged_fast(plain_tracebacks: None) -> None:
    """Many jobs fail here."""


@pytest.fixture
def driver() -> StubDriver:
    return StubDriver()


@pytest.fixture
def broker(driver: StubDriver) -> Iterator[Broker]:
    store = open_store("memory:")
    broker = Broker(driver, store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: Broker) -> ActorDecorator:
    return ActorDecorator(broker)


@pytest.fixture
def working(broker: Broker) -> Iterator[Working]:
    """Starts workers, and stops them at the end."""
    workers: list[Worker] = []

    def start(**options: Any) -> Worker:
        worker = Worker(broker, sorted(broker.queues), **options)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop(grace=0)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()
