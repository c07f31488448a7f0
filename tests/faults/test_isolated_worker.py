"""Isolated jobs under a whole worker: its stop, its death, its log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.states import State
from tests.patience import until
from tests.supervised import PATIENCE, App, app_in, is_alive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolated jobs need Linux")

_ACTORS = """
import ctypes
import subprocess
import time
from pathlib import Path

from actors.jobs import note
from broker import actor
from callboard import current_job


@actor(category="jobs", isolated=True, retries=0)
def stay(gate: str) -> None:
    note("start")
    while not Path(gate).exists():
        time.sleep(0.01)
    note("end")


@actor(category="jobs", isolated=True, retries=0)
def keep_state(gate: str) -> None:
    note("start", current_job().last_checkpoint())
    try:
        while not Path(gate).exists():
            time.sleep(0.01)
    finally:
        current_job().checkpoint("interrupted")
    note("end")


@actor(category="jobs", isolated=True, retries=0)
def hold_the_gil() -> None:
    note("start")
    ctypes.PyDLL(None).sleep(600)


@actor(category="jobs", isolated=True, retries=0)
def have_a_child() -> None:
    child = subprocess.Popen(["sleep", "600"])
    note("child", child.pid)
    child.wait()


@actor(category="jobs", isolated=True, retries=0)
def flood(lines: int) -> None:
    for number in range(lines):
        current_job().log.warning("a line", number=number)
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    for app in app_in(tmp_path):
        app.write("actors/apart.py", _ACTORS)
        yield app


def _runner(app: App) -> int:
    [start] = until(lambda: app.notes("start"))
    return int(start[-2])


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_an_isolated_job_has_started_ends_when_its_worker_is_killed(app: App) -> None:
    worker = app.start(processes=1, threads=1)
    (pid,) = worker.ready(1)
    app.send("have-a-child")
    [[_, child, *_]] = until(lambda: app.notes("child"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(int(child)))


@pytest.mark.parametrize("actor", ["stay", "hold-the-gil"])
def test_a_killed_worker_takes_its_isolated_jobs_along(app: App, actor: str) -> None:
    worker = app.start(processes=1, threads=2)
    [pid] = worker.ready(1)
    app.send(actor, **({"gate": "gate"} if actor == "stay" else {}))
    runner = _runner(app)
    nursery = _parent(runner)
    assert _parent(nursery) == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(runner) and not is_alive(nursery))


def test_a_killed_supervisor_takes_isolated_jobs_along(app: App) -> None:
    worker = app.start(processes=1, threads=2)
    worker.ready(1)
    app.send("hold-the-gil")
    runner = _runner(app)
    worker.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(runner))


def test_a_worker_that_stops_lets_isolated_jobs_finish(app: App) -> None:
    worker = app.start(processes=1, threads=2)
    worker.ready(1)
    job = app.send("stay", gate="gate")
    runner = _runner(app)
    worker.send_signal(signal.SIGTERM)
    until(lambda: "stopping, running jobs may finish" in worker.log())
    app.open("gate")
    assert worker.exit_code() == 0
    assert [line[0] for line in app.notes()] == ["start", "end"]
    until(lambda: not is_alive(runner))
    until(lambda: (record := app.store.get(job)) and record.state == State.SUCCEEDED)


def test_a_sigterm_to_every_process_is_no_failure_of_an_isolated_job(app: App) -> None:
    """As systemd sends it, unless it is told `KillMode=mixed`."""
    worker = app.start(processes=1, threads=2)
    (pid,) = worker.ready(1)
    job = app.send("stay", gate="gate")
    runner = _runner(app)
    for number in (runner, pid, worker.process.pid):
        os.kill(number, signal.SIGTERM)
    assert worker.exit_code() == 0
    app.open("gate")
    app.start(processes=1, threads=2).ready(1)
    until(lambda: (record := app.store.get(job)) and record.state == State.SUCCEEDED)
    assert [line[-1] for line in app.notes("start")] == ["1", "1"]


def test_at_the_end_of_the_grace_isolated_jobs_keep_their_state_and_go_back_uncounted(app: App) -> None:
    worker = app.start(processes=1, threads=2, grace=0.2)
    worker.ready(1)
    app.send("keep-state", gate="gate")
    runner = _runner(app)
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    until(lambda: not is_alive(runner))
    app.open("gate")
    app.start(processes=1, threads=2).ready(1)
    until(lambda: app.notes("end"))
    assert [(line[1], line[-1]) for line in app.notes("start")] == [("None", "1"), ("interrupted", "1")]


def test_an_isolated_job_that_holds_the_gil_does_not_keep_the_worker_from_stopping(app: App) -> None:
    worker = app.start(processes=1, threads=2, grace=0.2)
    worker.ready(1)
    app.send("hold-the-gil")
    runner = _runner(app)
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    until(lambda: not is_alive(runner))
    assert app.counts().ready == 1


def test_each_line_of_a_flood_of_them_names_its_job(app: App) -> None:
    worker = app.start(processes=1, threads=2)
    worker.ready(1)
    job = app.send("flood", lines=3_000)
    until(lambda: (record := app.store.get(job)) and record.state == State.SUCCEEDED)
    lines = [line for line in worker.log_lines() if line.get("event") == "a line"]
    assert [line["number"] for line in lines] == list(range(3_000))
    assert {line["job_id"] for line in lines} == {job}


def test_isolated_jobs_are_isolated_under_dramatiqs_own_command(app: App) -> None:
    with (app.folder / "log").open("wb") as log:
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dramatiq",
                "broker:broker",
                "actors.jobs",
                "actors.apart",
                "-p",
                "1",
                "-t",
                "2",
            ],
            cwd=app.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        app.send("keep-state", gate="gate")
        runner = _runner(app)
        process = _parent(_parent(runner))
        assert _parent(process) == worker.pid
        os.kill(process, signal.SIGKILL)
        until(lambda: not is_alive(runner))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(PATIENCE)
