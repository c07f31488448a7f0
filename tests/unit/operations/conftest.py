"""A broker with the whole stack, in memory, on a clock that stands, and the operations on it."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry

from callboard import Permanent, Priority
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.envelope import Signer
from callboard.metrics import Metrics
from callboard.operations import Operations
from callboard.store import open_store
from callboard.testing import Jobs
from middleware import stack


@pytest.fixture
def callboard_broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Takes the place of the plugin's own, which imports the application's."""
    store = open_store("memory:")
    broker = Broker(
        StubDriver(),
        store=store,
        middleware=stack(store, metrics=Metrics(CollectorRegistry())),
        signer=Signer.parse("k1:0123456789abcdef"),
    )
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
def operations(jobs: Jobs) -> Operations:
    return Operations(jobs.broker, who="ada")


@pytest.fixture
def actor(callboard_broker: Broker) -> ActorDecorator:
    return ActorDecorator(callboard_broker)


@pytest.fixture
def broken() -> set[str]:
    """What `deliver` fails at. A test mends it by taking something out."""
    return set()


@pytest.fixture
def deliver(jobs: Jobs, actor: ActorDecorator, broken: set[str]) -> Any:
    """An actor that dies of whatever is broken."""

    @actor(category="post", priority=Priority.HIGH)
    def deliver(to: str, password: str = "") -> None:
        if to in broken:
            raise Permanent(f"no such street: {to}")

    return deliver
