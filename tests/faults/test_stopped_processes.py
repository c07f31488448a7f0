"""Processes that were told to stop, and were killed because they didn't, or before they could: what they ran did not
take them down, so it is nobody's poison. It comes again, uncounted, as often as that happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callboard.worker.cut_runs import POISON_AFTER, cut_runs
from tests.patience import until
from tests.supervised import App, SupervisedWorker, app_in

_SERVERS = {"rabbitmq": "amqp_url", "redis": "redis_url"}


@pytest.fixture
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    """On the embedded queue, or on the driver that is the fixture's parameter."""
    server = _SERVERS.get(getattr(request, "param", "file"))
    url = request.getfixturevalue(server) if server is not None else "file:var"
    yield from app_in(tmp_path, url)


def stop_and_kill(app: App, worker: SupervisedWorker) -> None:
    """A stop, and a kill from outside while the grace lasts: a machine that is switched off, an impatient person."""
    pid = int(app.notes("start")[-1][2])
    worker.send_signal(signal.SIGTERM)
    until(lambda: "running jobs may finish" in worker.log())
    os.kill(pid, signal.SIGKILL)


def freeze_and_stop(app: App, worker: SupervisedWorker) -> None:
    """A process that doesn't obey, so that its supervisor kills it."""
    os.kill(int(app.notes("start")[-1][2]), signal.SIGSTOP)
    worker.send_signal(signal.SIGTERM)
    until(lambda: "running jobs may finish" in worker.log())
    worker.send_signal_again(signal.SIGTERM)
    until(lambda: "stopping at once" in worker.log())
    worker.send_signal_again(signal.SIGTERM)


def kill_all(app: App, worker: SupervisedWorker) -> None:
    """What the kernel, systemd and Kubernetes do in the end: everybody at once, the supervisor too."""
    worker.send_signal(signal.SIGTERM)
    until(lambda: "running jobs may finish" in worker.log())
    worker.end()


@pytest.mark.parametrize(
    ("stop", "app"),
    [
        (stop_and_kill, "file"),
        (stop_and_kill, "rabbitmq"),
        pytest.param(stop_and_kill, "redis", marks=pytest.mark.slow),  # its claim ends by itself
        (freeze_and_stop, "file"),
        (kill_all, "file"),
    ],
    indirect=["app"],
)
def test_what_is_killed_with_a_worker_that_was_told_to_stop_counts_for_nobody(
    stop: Callable[[App, SupervisedWorker], None], app: App
) -> None:
    job = app.send("deaf", seconds=3600)
    worker = app.start(processes=1, threads=2, grace=3600)
    until(lambda: app.notes("start"))
    stop(app, worker)
    worker.exit_code()
    app.start(processes=1, threads=2)
    until(lambda: len(app.notes("start")) == 2)
    assert cut_runs(app.store, None, job) == []
    assert {attempt for *_, attempt in app.notes("start")} == {"1"}
    record = app.store.get(job)
    assert record is None or not any("cut short" in event.text for event in record.events)


def test_a_process_that_is_killed_as_it_is_replaced_counts_for_nobody(app: App) -> None:
    """Here the supervisor lives on, and sees processes end by a signal that it hasn't sent."""
    worker = app.start(processes=1, threads=2, grace=3600)
    worker.ready(1)
    job = app.send("deaf", seconds=3600)
    for times in range(1, POISON_AFTER + 1):
        pid = runs_in(app, times)
        worker.send_signal(signal.SIGHUP)
        worker.wait_for("started")  # and by then the old one has been told
        os.kill(pid, signal.SIGKILL)
        assert worker.wait_for("stopped")["pid"] == pid
    runs_in(app, POISON_AFTER + 1)
    _counts_for_nobody(app, job, worker)


@pytest.mark.parametrize(("end", "kills"), [("by its grace", 1), ("by a kill", POISON_AFTER)])
def test_a_process_that_somebody_else_told_to_stop_counts_for_nobody(end: str, kills: int, app: App) -> None:
    """systemd, by default, sends SIGTERM to everybody, and the supervisor may be the last to hear of it."""
    worker = app.start(processes=1, threads=2, grace=0 if end == "by its grace" else 3600)
    worker.ready(1)
    job = app.send("deaf", seconds=3600)
    for times in range(1, kills + 1):
        pid = runs_in(app, times)
        os.kill(pid, signal.SIGTERM)
        until(lambda: worker.log().count("told to stop by somebody else") == times)  # noqa: B023  called at once
        if end == "by a kill":
            os.kill(pid, signal.SIGKILL)
        assert worker.wait_for("stopped")["pid"] == pid
    runs_in(app, kills + 1)
    _counts_for_nobody(app, job, worker)


def runs_in(app: App, times: int) -> int:
    """Wait until the job has started so many times; returns the process that it runs in."""
    until(lambda: len(app.notes("start")) == times)
    return int(app.notes("start")[-1][2])


def _counts_for_nobody(app: App, job: str, worker: SupervisedWorker) -> None:
    assert cut_runs(app.store, None, job) == []
    assert {attempt for *_, attempt in app.notes("start")} == {"1"}
    assert [event for event in worker.events if event["kind"] == "died"] == []


def test_one_that_nobody_told_to_stop_is_counted(app: App) -> None:
    """So that the tests above could fail."""
    worker = app.start(processes=1, threads=2)
    worker.ready(1)
    job = app.send("deaf", seconds=3600)
    os.kill(runs_in(app, 1), signal.SIGKILL)
    worker.wait_for("died")
    until(lambda: [run.exit for run in cut_runs(app.store, None, job)] == ["signal 9 (SIGKILL)"])


@pytest.mark.slow
def test_a_worker_stops_though_a_process_that_it_ordered_never_begins(app: App) -> None:
    worker = app.start(processes=1)
    (pid,) = worker.ready(1)
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    (zygote,) = {int(child) for child in children} - {pid}
    os.kill(zygote, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    worker.wait_for("died")
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
