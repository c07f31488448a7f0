"""A command that serves is told to stop before it has begun to: it ends as well as it would an hour later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import until
from tests.supervised import App, app_in

PATIENCE = 60.0  # seconds that an end may take on a slow machine
_ROOT = Path(__file__).parents[2]

#: Runs the command, and says when its own code has begun, which is as it imports its first module. It may get a signal
#: as it imports its n-th: a moment that is the same on each machine.
_COMMAND = """
import os, signal, sys

number, moment, imported = os.getpid(), int(sys.argv.pop(1)), [0]
name = getattr(signal, sys.argv.pop(1))


def count_imports(event, arguments):
    if event == "import" and os.getpid() == number:
        imported[0] += 1
        if imported[0] == 1:
            os.write(1, b"begun\\n")
        if imported[0] == moment:
            os.kill(number, name)


from callboard.cli import main

sys.addaudithook(count_imports)
main()
"""

_SCHEDULE = """
from broker import actor
from callboard import cron


@actor(periodic=cron("0 0 1 1 *"))
def greet() -> None: ...
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    for app in app_in(tmp_path):
        app.write("periodic/__init__.py", "")
        app.write("periodic/mail.py", _SCHEDULE)
        yield app


class Command:
    """A command in a process of its own, up to the first line of Callboard's code."""

    def __init__(
        self, app: App, *arguments: str, told_at: int = 0, number: signal.Signals = signal.SIGTERM
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
        self.log = app.folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(told_at), number.name, *arguments],
                cwd=app.folder,
                env=environment | {"PYTHONPATH": str(_ROOT), "CALLBOARD_LOG_FORMAT": "json"},
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"begun\n"

    def exit_code(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize(
    ("command", "told_at"),
    [("worker", 1), ("worker", 10), ("worker", 200), ("scheduler", 1), ("scheduler", 200)],
)
def test_sigterm_while_a_command_is_imported_ends_it_with_0(command: str, told_at: int, app: App) -> None:
    process = Command(app, command, told_at=told_at)
    assert process.exit_code() == 0, process.log.read_text()
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("seconds", [0.0, 0.4, 0.8, 1.2])
def test_sigterm_at_any_moment_of_the_first_second_ends_a_worker_with_0(seconds: float, app: App) -> None:
    process = Command(app, "worker", "--processes", "2")
    time.sleep(seconds)  # whatever it is at by then
    process.process.terminate()
    assert process.exit_code() == 0, process.log.read_text()
    assert "Traceback" not in process.log.read_text()


def test_a_job_that_waits_stays_where_it_is_when_a_worker_is_stopped_at_its_start(app: App) -> None:
    job = app.send("quick")
    process = Command(app, "worker", told_at=1)
    assert process.exit_code() == 0
    counts = app.counts()
    assert (counts.ready, counts.claimed) == (1, 0)
    app.start(processes=1).ready(1)
    until(lambda: [words[1] for words in app.notes("end")] == [job])


def test_sighup_while_a_worker_is_imported_does_not_kill_it(app: App) -> None:
    process = Command(app, "worker", told_at=1, number=signal.SIGHUP)
    app.send("quick")
    until(lambda: app.notes("end"))
    process.process.terminate()
    assert process.exit_code() == 0


def test_sigterm_ends_other_commands_as_it_ends_any(app: App) -> None:
    """They do what they do at once, and whoever stops them wants to see that it wasn't done."""
    process = Command(app, "jobs", "watch", "nobody-knows-it", told_at=1)
    assert process.exit_code() == -signal.SIGTERM
