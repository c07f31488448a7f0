"""A broker with the whole stack for the pytest plugin to lend, and an actor on it."""

from __future__ import annotations

from datetime import date
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.testing import Jobs
from middleware import stack


def new_broker() -> Broker:
    store = open_store("memory:")
    return Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))


@pytest.fixture(scope="module")
def callboard_broker() -> Broker:
    """Takes the place of the plugin's own, which imports the application's."""
    return new_broker()


@pytest.fixture(autouse=True)
def global_broker(callboard_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dramatiq.broker, "global_broker", callboard_broker)


@pytest.fixture
def actor(callboard_broker: Broker) -> ActorDecorator:
    return ActorDecorator(callboard_broker)


@pytest.fixture
def seen() -> list[Any]:
    """What the jobs of a test leave behind."""
    return []


@pytest.fixture
def note(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> Any:
    @actor(category="jobs")
    def note(text: str) -> None:
        seen.append(text)

    return note


class NoInvoice(Exception):
    pass


class SendEmail(BaseModel):
    to: list[str]
    on: date = date(2026, 1, 1)
