"""Jobs that kill their worker: dead after three times, and nobody else dies of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard import dead_letter
from callboard.dead_letter import DeadLetter
from callboard.states import State
from tests.patience import until
from tests.supervised import App, app_in

_DEADLY = '''
"""Ways to die."""
import ctypes
import os
import signal

from actors.jobs import note
from broker import actor


@actor(category="jobs", retries=0)
def exit_at_once() -> None:
    note("deadly")
    os._exit(7)


@actor(category="jobs", retries=0)
def be_killed() -> None:
    note("deadly")
    os.kill(os.getpid(), signal.SIGKILL)


@actor(category="jobs", retries=0)
def segfault() -> None:
    note("deadly")
    ctypes.string_at(0)
'''


_SERVERS = {"rabbitmq": "amqp_url", "redis": "redis_url"}


@pytest.fixture
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    """On the embedded queue, or on the driver that is the fixture's parameter."""
    server = _SERVERS.get(getattr(request, "param", "file"))
    url = request.getfixturevalue(server) if server is not None else "file:var"
    for app in app_in(tmp_path, url):
        app.write("actors/deadly.py", _DEADLY)
        yield app


def letters(app: App) -> list[DeadLetter]:
    driver = app.open_driver()
    try:
        return [dead_letter.decode(stored.body) for stored in driver.peek("jobs.dead")]
    finally:
        driver.close()


@pytest.mark.parametrize(
    ("actor", "exit_"),
    [
        ("exit-at-once", "exit code 7"),
        ("be-killed", "signal 9 (SIGKILL)"),
        ("segfault", "signal 11 (SIGSEGV)"),
    ],
)
def test_a_job_that_kills_its_worker_is_dead_after_three_times(actor: str, exit_: str, app: App) -> None:
    app.start(processes=2, threads=4)
    job = app.send(actor)
    until(lambda: letters(app))
    [letter] = letters(app)
    assert letter.job_id == job
    assert letter.reason.startswith("poison: 3 runs took their worker down")
    assert [error.type for error in letter.attempts] == ["WorkerDied"] * 3
    assert all(exit_ in error.message and "MiB" in error.message for error in letter.attempts)
    assert len(app.notes("deadly")) == 3
    pids = {int(pid) for _, _, pid, _ in app.notes("deadly")}
    assert {int(error.worker.rpartition(":")[2]) for error in letter.attempts} == pids
    record = until(lambda: (record := app.store.get(job)) and record.state is State.DEAD and record)
    story = [event.text for event in record.events]
    assert sum("cut short" in text for text in story) == 2
    assert f"{exit_} while it ran this job" in story[0]
    assert "(1 of 3)" in story[0]


@pytest.mark.parametrize("app", ["file", "rabbitmq", "redis"], indirect=True)
def test_fifteen_neighbours_of_a_job_that_kills_its_worker_all_run_and_none_is_dead(app: App) -> None:
    """They run in the same process, several of them die with it, and they are many more than there are threads."""
    app.start(processes=1, threads=8)
    before = [app.send("hold", gate="gate") for _ in range(7)]
    until(lambda: len(app.notes("start")) == 7)
    deadly = app.send("be-killed")
    after = [app.send("hold", gate="gate") for _ in range(8)]
    until(lambda: app.notes("deadly"))
    app.open("gate")
    until(lambda: {noted[1] for noted in app.notes("end")} == {*before, *after})
    until(lambda: letters(app))
    assert [letter.job_id for letter in letters(app)] == [deadly]
    ended = Counter(noted[1] for noted in app.notes("end"))
    assert set(ended.values()) == {1}, "a job that has ended isn't run again"
    started = Counter(noted[1] for noted in app.notes("start"))
    assert max(started.values()) <= 2, "they were cut short once at most"
    assert {noted[3] for noted in app.notes("start")} == {"1"}, "what was cut short uses no attempt"


def test_one_that_runs_beside_two_jobs_that_kill_their_worker_is_cut_short_once(app: App) -> None:
    """From then on it runs alone, as they do."""
    app.start(processes=1, threads=4)
    innocent = app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    deadly = {app.send("be-killed"), app.send("segfault")}
    until(lambda: len(app.notes("start")) == 2)
    app.open("gate")
    until(lambda: {letter.job_id for letter in letters(app)} == deadly)
    until(lambda: app.notes("end"))
    assert [noted[1] for noted in app.notes("start")] == [innocent] * 2
