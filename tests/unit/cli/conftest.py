"""The command line on a broker in memory: what a command prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry
from typer.main import get_command

from callboard import Permanent, Priority, cron
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.cli import exits
from callboard.cli.commands import app
from callboard.cli.session import Session
from callboard.metrics import Metrics
from callboard.operations import Operations
from callboard.store import open_store
from callboard.testing import Jobs
from middleware import stack


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


Callboard = Callable[..., Outcome]

_COMMAND = get_command(app)


@pytest.fixture
def callboard_broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Takes the place of the plugin's own, which imports the application's."""
    store = open_store("memory:")
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
def broken() -> set[str]:
    """What `deliver` fails at. A test mends it by taking something out."""
    return set()


@pytest.fixture
def deliver(jobs: Jobs, callboard_broker: Broker, broken: set[str]) -> Any:
    """An actor that dies of whatever is broken."""
    actor = ActorDecorator(callboard_broker)

    @actor(category="post", priority=Priority.HIGH)
    def deliver_letter(to: str, password: str = "") -> None:
        """Carry a letter to a street."""
        if to in broken:
            raise Permanent(f"no such street: {to}")

    @actor(category="post", periodic=cron("0 3 * * *"))
    def sweep() -> None: ...

    return deliver_letter


@pytest.fixture
def callboard(jobs: Jobs, deliver: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Callboard]:
    """Runs the command with some arguments, in this process."""

    @contextmanager
    def broker(self: Session, *, quiet: bool = True) -> Iterator[Broker]:
        yield jobs.broker

    @contextmanager
    def operations(self: Session, *, messages: bool = True) -> Iterator[Operations]:
        yield Operations(jobs.broker, who="cli:ada")

    monkeypatch.setattr(Session, "broker", broker)
    monkeypatch.setattr(Session, "operations", operations)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            exits.run(lambda: _COMMAND(list(arguments), prog_name="callboard"))
        out, err = capsys.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    yield run
