"""A worker process on Redis is killed: its jobs don't wait until its lease has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import until
from tests.supervised import App, app_in

_ENDLESS = "\nbroker.driver.lease = 86_400.0\n"


@pytest.fixture
def app(tmp_path: Path, redis_url: str) -> Iterator[App]:
    """Leases outlast the test, so that only a burial lets others have what a dead worker held."""
    for app in app_in(tmp_path, redis_url):
        app.write("broker.py", (tmp_path / "broker.py").read_text() + _ENDLESS)
        yield app


def test_the_jobs_of_a_killed_process_run_again_at_once_and_those_of_its_sibling_do_not(app: App) -> None:
    worker = app.start(processes=2, threads=2)
    victim, _ = worker.ready()
    for _ in range(4):
        app.send("hold", gate="gate")
    until(lambda: len(app.notes("start")) == 4)
    held = {job for _, job, pid, _ in app.notes("start") if int(pid) == victim}
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(app.notes("start")) > 4)
    app.open("gate")  # each may have to run alone, so the next begins when this one has ended
    until(lambda: len(app.notes("end")) == 4)
    starts = [job for _, job, _, _ in app.notes("start")]
    assert held
    assert {job for job in starts if starts.count(job) == 2} == held
