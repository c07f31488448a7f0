"""A deploy, on each driver: a worker is told to stop, another one starts, and no job notices more than it must."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard import envelope
from callboard.brokers.driver import Delivery, IntakeOptions
from callboard.brokers.settling import checkpoint_key
from tests.patience import until
from tests.supervised import PATIENCE, App, app_in, is_alive

_LONG_JOBS = """

@actor(retries=0)
def import_rows(rows: int) -> None:
    job = current_job()
    first = job.last_checkpoint() or 0
    note("from", first)
    for row in range(first, rows):
        job.checkpoint(row + 1)
        note("row", row)
        while not Path(f"gate-{row}").exists():
            time.sleep(0.01)
    note("imported", rows)
"""

_SERVERS = {"rabbitmq": "amqp_url", "redis": "redis_url"}


@pytest.fixture(params=["file", "rabbitmq", "redis"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    server = _SERVERS.get(request.param)
    url = request.getfixturevalue(server) if server is not None else "file:var"
    for app in app_in(tmp_path, url):
        with (app.folder / "actors/jobs.py").open("a") as actors:
            actors.write(_LONG_JOBS)
        yield app


def take(app: App, wanted: int) -> list[Delivery]:
    """What another worker is given, and gives back."""
    driver = app.open_driver()
    intake = driver.open_intake(IntakeOptions(queues=["jobs.medium"], budget=100, worker="elsewhere"))
    found: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    try:
        while len(found) < wanted and time.monotonic() < end:
            found += intake.fetch(wanted - len(found), 1.0)
        assert len(found) == wanted
        assert intake.fetch(1, 0.2) == []
        intake.give_back(found)
        return found
    finally:
        intake.close()
        driver.close()


def test_a_worker_that_is_told_to_stop_passes_on_what_it_has_not_started_and_finishes_what_runs(
    app: App,
) -> None:
    old = app.start(processes=1, threads=2, grace=2 * PATIENCE)
    old.ready(1)
    for _ in range(30):
        app.send("quick")
    until(lambda: len(app.notes("end")) == 30)  # so that it takes all jobs for short, and claims some ahead
    sent = {app.send("hold", gate="gate") for _ in range(12)}
    until(lambda: len(app.notes("start")) == 32)
    running = {job for _, job, _, _ in app.notes("start")} & sent
    old.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in old.log())
    passed_on = take(app, 10)  # while the two still run
    assert len(app.notes("end")) == 30
    assert {json.loads(delivery.body)["message_id"] for delivery in passed_on} == sent - running
    assert {envelope.decode_headers(delivery.headers).attempt for delivery in passed_on} == {0}
    app.open("gate")
    assert old.exit_code() == 0
    assert {job for _, job, _, _ in app.notes("end")} & sent == running
    new = app.start(processes=1, threads=2)
    new.ready(1)
    until(lambda: len(app.notes("end")) == 42)
    assert {attempt for *_, attempt in app.notes("start")} == {"1"}
    assert len(app.notes("start")) == 42  # none ran twice


def test_a_job_resumes_from_its_checkpoint_after_a_deploy_and_after_a_crash(app: App) -> None:
    old = app.start(processes=1, threads=1, grace=0.2)
    old.ready(1)
    job = app.send("import-rows", rows=4)
    until(lambda: len(app.notes("row")) == 1)
    app.open("gate-0")
    until(lambda: len(app.notes("row")) == 2)
    begun = time.monotonic()
    old.send_signal(signal.SIGTERM)  # it is in row 1 as the grace ends
    assert old.exit_code() == 0
    assert time.monotonic() - begun < PATIENCE / 2
    app.open("gate-1")
    new = app.start(processes=1, threads=1)
    new.ready(1)
    until(lambda: len(app.notes("row")) == 3)
    pid = int(app.notes("row")[-1][-2])
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))
    for row in (2, 3):
        app.open(f"gate-{row}")
    until(lambda: app.notes("imported"), 2 * PATIENCE)
    assert [note[1] for note in app.notes("from")] == ["0", "2", "3"]
    assert [note[1] for note in app.notes("row")] == ["0", "1", "2", "3"]
    assert {note[-1] for note in app.notes()} == {"1"}  # neither the deploy nor the crash counts
    until(lambda: app.store.get_result(checkpoint_key(job)) is None)
