"""Kills: of a worker process, of all, of the supervisor, of the process between. Jobs finish all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.states import State
from tests.patience import until
from tests.supervised import App, SupervisedWorker, app_in, is_alive

REPLACED_WITHIN = 2.0  # seconds: what the README promises


_LOCKED = '''
import re

from actors.jobs import note
from broker import actor


@actor(category="jobs", retries=0)
def keep_the_lock() -> None:
    """Looks for a match for longer than anybody lives, and lets nobody else have Python's lock meanwhile."""
    note("start")
    re.match("(a+)+$", "a" * 100 + "b")
'''


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    yield from app_in(tmp_path)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _zygote(worker: SupervisedWorker, workers: list[int]) -> int:
    [zygote] = set(_children(worker.process.pid)) - set(workers)
    return zygote


def test_a_killed_process_is_replaced_within_two_seconds_and_its_sibling_goes_on(app: App) -> None:
    worker = app.start(processes=2, threads=2)
    pids = worker.ready()
    for _ in range(4):
        app.send("hold", gate="gate")
    until(lambda: len(app.notes("start")) == 4)
    victim, sibling = pids
    mine = {job for _, job, pid, _ in app.notes("start") if int(pid) == victim}
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    died = worker.wait_for("died")
    assert died["pid"] == victim
    assert died["exit"] == "signal 9 (SIGKILL)"
    assert set(died["running"]) == mine
    replaced = worker.wait_for("replaced")
    assert time.monotonic() - killed < REPLACED_WITHIN
    assert replaced["replaces"] == victim
    assert replaced["seconds"] < REPLACED_WITHIN

    until(
        lambda: len(app.notes("start")) == 5
    )  # one of the victim started again; the other isn't to run beside it
    app.open("gate")
    until(lambda: len(app.notes("end")) == 4)
    assert is_alive(sibling)
    starts = [job for _, job, _, _ in app.notes("start")]
    assert {job for job in starts if starts.count(job) == 2} == mine
    assert {attempt for *_, attempt in app.notes()} == {"1"}, "a crash uses no attempt of the others"
    ends = [int(pid) for _, job, pid, _ in app.notes("end") if job not in mine]
    assert ends == [sibling, sibling]


def test_a_killed_process_is_no_longer_counted_among_the_living(app: App) -> None:
    worker = app.start(processes=2, threads=2)
    victim, sibling = worker.ready()
    until(lambda: {beat.pid for beat in app.store.workers()} == {victim, sibling})
    os.kill(victim, signal.SIGKILL)
    # So long a silence that nobody is dead because of it alone.
    alive = until(lambda: (pids := _beating(app)) and victim not in pids and pids)
    assert sibling in alive


def _beating(app: App) -> set[int]:
    return {beat.pid for beat in app.store.workers(alive_within=3_600.0)}


def test_a_process_is_replaced_within_two_seconds_while_the_machine_is_busy(app: App) -> None:
    worker = app.start(processes=2)
    pids = worker.ready()
    spin = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for victim in pids:
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            worker.wait_for("replaced")
            assert time.monotonic() - killed < REPLACED_WITHIN
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def test_all_processes_killed_at_once_are_all_replaced(app: App) -> None:
    worker = app.start(processes=3)
    pids = worker.ready(3)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert {worker.wait_for("replaced")["replaces"] for _ in pids} == set(pids)
    app.send("quick")
    until(lambda: app.notes("end"))
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


@pytest.mark.parametrize("code", [0, 1, 139])
def test_a_job_that_ends_its_process_harms_no_other(code: int, app: App) -> None:
    worker = app.start(processes=2, threads=2)
    worker.ready()
    job = app.send("deadly", code=code)
    died = worker.wait_for("died")
    assert died["exit"] == f"exit code {code}"
    assert died["running"] == [job]
    app.store.cancel(job, at=time.time())  # or it would kill again and again
    others = [app.send("quick") for _ in range(20)]
    until(lambda: {noted[1] for noted in app.notes("end")} >= set(others))
    until(lambda: (record := app.store.get(job)) is not None and record.state is State.CANCELLED)


def test_when_the_supervisor_is_killed_the_others_stop_and_give_back(app: App) -> None:
    worker = app.start(processes=2, threads=2)
    pids = worker.ready()
    zygote = _zygote(worker, pids)
    for _ in range(3):
        app.send("hold", gate="never")
    until(lambda: len(app.notes("start")) == 3)
    worker.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: not any(is_alive(pid) for pid in (*pids, zygote)))
    assert time.monotonic() - killed < 5
    counts = app.counts()
    assert (counts.ready, counts.claimed) == (3, 0)
    assert app.notes("end") == []


def test_an_orphan_whose_job_cannot_be_interrupted_ends_all_the_same(app: App) -> None:
    worker = app.start(processes=1)
    pids = worker.ready(1)
    app.send("deaf", seconds=3600)
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(pids[0]))


def test_an_orphan_whose_job_keeps_pythons_lock_ends_all_the_same(app: App) -> None:
    app.write("actors/locked.py", _LOCKED)
    worker = app.start(processes=1)
    pids = worker.ready(1)
    app.send("keep-the-lock")
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(pids[0]))


def test_when_the_process_that_starts_the_others_is_killed_they_go_on(app: App) -> None:
    worker = app.start(processes=2)
    pids = worker.ready()
    zygote = _zygote(worker, pids)
    os.kill(zygote, signal.SIGKILL)
    until(lambda: len(_children(worker.process.pid)) == 3 and zygote not in _children(worker.process.pid))
    assert all(is_alive(pid) for pid in pids)
    os.kill(pids[0], signal.SIGKILL)
    assert worker.wait_for("replaced")["replaces"] == pids[0]
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


def test_a_stopped_process_that_does_not_obey_is_killed_by_a_third_signal(app: App) -> None:
    worker = app.start(processes=1, grace=3600)
    [pid] = worker.ready(1)
    os.kill(pid, signal.SIGSTOP)
    worker.send_signal(signal.SIGTERM)
    until(lambda: "running jobs may finish" in worker.log())
    worker.send_signal_again(signal.SIGTERM)
    until(lambda: "stopping at once" in worker.log())
    assert is_alive(pid)
    worker.send_signal_again(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert not is_alive(pid)
