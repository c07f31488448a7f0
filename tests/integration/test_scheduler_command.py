"""`callboard scheduler`, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    return subprocess.Popen(
        [sys.executable, "-m", "callboard.cli", "scheduler"],
        cwd=folder,
        env=environment | {"CALLBOARD_LOG_FORMAT": "json", "PYTHONPATH": str(_ROOT)},
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
