"""Which application a command works with, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.main import get_command

import callboard.app
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.cli import exits
from callboard.cli.commands import app
from callboard.cli.exits import ExitCode
from callboard.store import open_store

_COMMAND = get_command(app)


@pytest.fixture
def run(
    callboard_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command on an application whose messages wait in memory; returns its code and what it complains of."""

    def load(*_: object) -> Broker:
        return Broker(StubDriver(), store=open_store("memory:"))

    monkeypatch.setattr(callboard.app, "load_app", load)
    monkeypatch.setattr("callboard.cli.session._quiet_logs", lambda: None)
    monkeypatch.setenv("CALLBOARD_BROKER_URL", "stub:")

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            exits.run(lambda: _COMMAND(list(arguments), prog_name="callboard"))
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["worker"],
        ["dev"],
        ["scheduler"],
        ["enqueue", "send-email"],
        ["why", "3597f594"],
        ["jobs", "list"],
        ["jobs", "cancel", "3597f594"],
        ["dead", "list"],
        ["queues", "list"],
        ["quarantine", "list"],
        ["workers"],
    ],
    ids=" ".join,
)
def test_messages_in_the_commands_own_memory_are_refused(
    run: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    code, err = run(*arguments)

    assert code == ExitCode.MISCONFIGURED
    assert err.startswith("callboard: stub: keeps messages in this process's memory alone")
    assert "set CALLBOARD_BROKER_URL=file:var" in err


def test_what_is_declared_can_be_seen_whatever_the_broker(run: Callable[..., tuple[int, str]]) -> None:
    assert run("schemas")[0] == 0
