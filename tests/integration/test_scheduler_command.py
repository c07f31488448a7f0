"""`callboard scheduler`, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callboard.cli.exits import ExitCode

PATIENCE = 60.0  # seconds that an event may take on a slow machine
_ROOT = Path(__file__).parents[2]

_APP = """
from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.store import open_store
from middleware import stack

store = open_store("file:var")
broker = Broker(open_driver("file:var"), store=store, middleware=stack(store))
actor = ActorDecorator(broker)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "broker.py").write_text(_APP)
    (tmp_path / "periodic").mkdir()
    (tmp_path / "periodic" / "__init__.py").touch()
    return tmp_path


def start(folder: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    return subprocess.Popen(
        [sys.executable, "-m", "callboard.cli", "scheduler", *options],
        cwd=folder,
        env=environment | {"CALLBOARD_LOG_FORMAT": "json", "PYTHONPATH": str(_ROOT)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_scheduler_tells_what_it_serves_and_ends_well_when_it_is_told_to(
    folder: Path, number: signal.Signals
) -> None:
    (folder / "periodic" / "mail.py").write_text(
        "from broker import actor\n"
        "from callboard import cron\n\n\n"
        "@actor(periodic=cron('0 0 1 1 *'))\n"
        "def greet() -> None: ...\n"
    )
    process = start(folder)
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        assert "scheduler started" in line
        assert "greet" in line
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in rest
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_scheduler_without_schedules_says_so(folder: Path) -> None:
    process = start(folder)
    out, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert out.startswith("No actor has a schedule")


_EVERY_MINUTE = """
from prometheus_client import Counter

from broker import actor
from callboard import cron

GREETINGS = Counter("shop_greetings", "Greetings.")


@actor(periodic=cron("* * * * *"))
def greet() -> None: ...
"""


def ask(address: str, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{page}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[Iterator[dict[str, object]]]:
    """The lines that a scheduler logs; if it hangs it is killed, and they end."""
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        yield (json.loads(line) for line in process.stdout)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("how", ["option", "setting"])
def test_the_scheduler_has_a_port_that_tells_of_its_ticks_and_whether_it_gets_on(
    folder: Path, how: str
) -> None:
    (folder / "periodic" / "mail.py").write_text(_EVERY_MINUTE)
    process = (
        start(folder, "--http", "127.0.0.1:0")
        if how == "option"
        else start(folder, CALLBOARD_SCHEDULER_HTTP="127.0.0.1:0")
    )
    with watched(process) as lines:
        address = next(
            str(line["address"]) for line in lines if line["event"] == "the scheduler's port is open"
        )
        next(line for line in lines if line["event"] == "scheduler started")
        assert ask(address, "/healthz") == (200, "ok\n")
        while ask(address, "/readyz")[0] != 200:  # until it has looked at its schedules
            assert process.poll() is None
        status, metrics = ask(address, "/metrics")
        assert status == 200
        assert 'callboard_scheduler_ticks_total{actor="greet",outcome="missed"} 0.0' in metrics
        assert 'callboard_scheduler_paused{actor="greet"} 0.0' in metrics
        assert "shop_greetings" not in metrics
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
        assert process.wait(PATIENCE) == 0
        assert not [line for line in rest if line["level"] in ("error", "critical")]


def test_a_port_that_is_taken_ends_the_scheduler_with_a_sentence(folder: Path) -> None:
    (folder / "periodic" / "mail.py").write_text(_EVERY_MINUTE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(folder, "--http", f"127.0.0.1:{taken.getsockname()[1]}")
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == ExitCode.MISCONFIGURED
    assert "address already in use; give another address with --http or CALLBOARD_SCHEDULER_HTTP" in out
    assert "Traceback" not in out
