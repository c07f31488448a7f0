"""Two workers on RabbitMQ, as on two hosts: one doesn't answer in time, and what it runs is delivered to the other."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callboard import State
from callboard.servers import PrivateRabbitmq, PrivateRedis
from callboard.store import open_store
from callboard.store.leases import LEASE, lease_owner
from tests.patience import until
from tests.supervised import App, SupervisedWorker, app_in, is_alive

PATIENCE = 90.0
#: RabbitMQ notices within two heartbeats that a worker is silent.
HEARTBEAT = 4

_JOBS = '''
"""What runs while its worker is silent."""
import ctypes
import os
import time
from pathlib import Path

from actors.jobs import note
from broker import actor
from callboard import LeaseLost, current_job


@actor(category="jobs", retries=0)
def hold_the_gil(seconds: int) -> None:
    note("start")
    ctypes.PyDLL(None).sleep(seconds)
    note("end")


@actor(category="jobs", retries=0, store_results=True)
def keep_at_it(gate: str) -> str:
    note("start")
    try:
        while not Path(gate).exists():
            time.sleep(0.01)
    except LeaseLost:
        try:
            current_job().checkpoint({"by": os.getpid()})
        except LeaseLost:
            note("refused")
        return "late"
    note("end")
    return "in time"
'''


@pytest.fixture
def app(tmp_path: Path, amqp_url: str) -> Iterator[App]:
    for app in app_in(tmp_path, f"{amqp_url}?heartbeat={HEARTBEAT}"):
        app.write("actors/silent.py", _JOBS)
        yield app


@pytest.fixture
def app_on_redis(app: App, own_redis: PrivateRedis) -> App:
    """The same, with a store that can fall silent by itself."""
    broker = (app.folder / "broker.py").read_text()
    app.write("broker.py", broker.replace("file:var", own_redis.url))
    app.store.close()
    app.store = open_store(own_redis.url)
    return app


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class Queue:
    """What RabbitMQ has of the jobs."""

    def __init__(self, rabbitmq: PrivateRabbitmq, amqp_url: str) -> None:
        self._rabbitmq = rabbitmq
        self._vhost = amqp_url.rpartition("/")[2]

    def _shows(self, column: str, number: int) -> bool:
        listed = ("list_queues", "--quiet", "--no-table-headers", "-p", self._vhost, "name", column)
        return f"jobs.medium\t{number}\n" in self._rabbitmq.ctl(*listed) + "\n"

    def has_one_consumer(self) -> bool:
        """Whether it has closed the first worker's connection, and so given its job to the second."""
        return self._shows("consumers", 1)

    def is_empty(self) -> bool:
        return self._shows("messages", 0)


@pytest.fixture
def queue(rabbitmq: PrivateRabbitmq, amqp_url: str) -> Queue:
    return Queue(rabbitmq, amqp_url)


def start_two(app: App, actor: str, **payload: Any) -> tuple[SupervisedWorker, int, SupervisedWorker, str]:
    """A worker that runs a job, the process that does so, a second worker, and the job's id."""
    first = app.start(processes=1, threads=2)
    (pid,) = first.ready(1)
    job = app.send(actor, **payload)
    until(lambda: app.notes("start"))
    second = app.start(processes=1, threads=2)
    second.ready(1)
    return first, pid, second, job


def starts(app: App, job: str) -> int:
    return [noted[1] for noted in app.notes("start")].count(job)


def test_a_job_that_holds_the_gil_is_not_run_by_another_host(app: App, queue: Queue) -> None:
    """Neither its heartbeats nor any thread of its process go on; the lease does, for longer than it lasts once."""
    _, _, _, job = start_two(app, "hold-the-gil", seconds=int(LEASE) + 5)
    other = app.send("quick")
    until(lambda: any(noted[1] == other for noted in app.notes("end")), PATIENCE)
    until(queue.is_empty, PATIENCE)  # the copy is gone, not only claimed
    assert [noted[1] for noted in app.notes("end")].count(job) == 1
    assert starts(app, job) == 1


def test_a_process_that_is_stopped_keeps_its_job(app: App, queue: Queue) -> None:
    _, pid, second, job = start_two(app, "keep-at-it", gate="open")
    until(lambda: lease_owner(app.store, job))
    with frozen([pid]):
        until(queue.has_one_consumer, PATIENCE)
        owners = _owners(app, job, LEASE + 3)  # for longer than the lease lasts unless it is renewed
    assert len(owners) == 1
    app.open("open")
    until(queue.is_empty, PATIENCE)
    assert starts(app, job) == 1
    record = app.store.get(job)
    assert record is not None
    assert record.state is State.SUCCEEDED
    assert second.process.poll() is None


@pytest.mark.slow
def test_a_store_that_is_silent_for_longer_than_a_lease_takes_no_job_from_a_worker_that_runs_it(
    app_on_redis: App, queue: Queue, own_redis: PrivateRedis
) -> None:
    """Nobody can renew a lease meanwhile. Who waits for the job lets the other one be first."""
    app = app_on_redis
    _, pid, _, job = start_two(app, "keep-at-it", gate="open")
    owner = until(lambda: lease_owner(app.store, job))
    with frozen([pid]):
        until(queue.has_one_consumer, PATIENCE)
    with own_redis.frozen():
        time.sleep(LEASE + 2)
    until(lambda: lease_owner(app.store, job) == owner)
    assert _owners(app, job, LEASE + 3) == {owner}
    app.open("open")
    until(queue.is_empty, PATIENCE)
    assert starts(app, job) == 1
    assert [noted[0] for noted in app.notes()] == ["start", "end"]


def test_a_job_has_its_lease_until_the_process_that_runs_it_has_ended(app: App) -> None:
    """The worker was told to stop, and the job can't be interrupted: the process is killed long after the grace."""
    worker = app.start(processes=1, threads=2, grace=0.5)
    (pid,) = worker.ready(1)
    job = app.send("hold-the-gil", seconds=60)
    until(lambda: app.notes("start"))
    owner = until(lambda: lease_owner(app.store, job))
    worker.send_signal(signal.SIGTERM)
    held, alive = owner, True
    while alive:
        held, alive = lease_owner(app.store, job), is_alive(pid)
        assert held == owner or not alive
        time.sleep(0.1)
    assert worker.exit_code() == 0
    assert lease_owner(app.store, job) is None


def _owners(app: App, job: str, seconds: float) -> set[str | None]:
    """Who has its lease in the next seconds."""
    end, owners = time.monotonic() + seconds, set()
    while time.monotonic() < end:
        owners.add(lease_owner(app.store, job))
        time.sleep(0.1)
    return owners


def test_a_host_that_is_frozen_for_longer_than_its_lease_loses_its_job_and_records_nothing(
    app: App, queue: Queue
) -> None:
    first, pid, _, job = start_two(app, "keep-at-it", gate="open")
    until(lambda: lease_owner(app.store, job))
    with frozen(_session(first)):
        until(lambda: starts(app, job) == 2, PATIENCE)
    until(lambda: app.notes("refused"), PATIENCE)
    assert [noted[2] for noted in app.notes("refused")] == [str(pid)]
    app.open("open")
    until(queue.is_empty, PATIENCE)
    (end,) = app.notes("end")
    record = until(lambda: (r := app.store.get(job)) and r.state.is_end and r)
    assert record.state is State.SUCCEEDED
    assert record.worker.split(":")[1] == end[2] != str(pid)
    assert any("another worker has the job" in event.text for event in record.events)
    assert starts(app, job) == 2


@pytest.mark.slow
def test_a_host_that_is_frozen_before_its_job_has_a_lease_records_nothing_either(
    app: App, queue: Queue
) -> None:
    first = app.start(processes=1, threads=2)
    (pid,) = first.ready(1)
    processes = _session(first)
    job = app.send("keep-at-it", gate="open")
    until(lambda: app.notes("start"))
    with frozen(processes):
        app.start(processes=1, threads=2).ready(1)
        until(lambda: starts(app, job) == 2, PATIENCE)
        app.open("open")
        until(lambda: (r := app.store.get(job)) and r.state.is_end)
    until(lambda: len(app.notes("end")) == 2)  # the late one is none the wiser
    record = until(lambda: (r := app.store.get(job)) and r.events and r)
    assert "another worker has the job" in record.events[0].text
    assert record.worker.split(":")[1] == app.notes("end")[0][2] != str(pid)


def _session(worker: SupervisedWorker) -> list[int]:
    """All processes of a worker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == worker.process.pid:
                    found.append(int(entry.name))
    return found
