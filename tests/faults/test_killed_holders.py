"""Who holds a place of a concurrency limit, or a slot of a rate, is killed: no more run than the limit allows, and none
waits for ever."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from callboard.store import open_store
from callboard.store.base import Store
from callboard.store.slots import TOLERANCE
from tests.patience import until
from tests.supervised import App, SupervisedWorker, app_in

PATIENCE = 60.0  # seconds that an event may take on a slow machine
HOLD = 6.0  # seconds; a renewal may be late by four
EVERY = 0.25  # seconds between two starts

_BROKER = """
from datetime import timedelta

from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.store import open_store
from middleware import stack
from middleware.concurrency_limits import ConcurrencyLimits

store = open_store({store!r})
places = ConcurrencyLimits(hold=timedelta(seconds={hold}))
layers = [places if isinstance(layer, ConcurrencyLimits) else layer for layer in stack(store)]
broker = Broker(open_driver("file:var"), store=store, middleware=layers, one_host=True)
actor = ActorDecorator(broker)
"""

_ACTORS = '''
"""Jobs with limits, which note when they start and end by the clock that all processes of a machine share."""
import time
from pathlib import Path

from actors.jobs import note
from broker import actor
from callboard import ConcurrencyLimit, RateLimit


@actor(category="jobs", retries=0, concurrency=ConcurrencyLimit(2))
def take_a_place(gate: str) -> None:
    note("start", time.monotonic())
    while not Path(gate).exists():
        time.sleep(0.01)
    note("end", time.monotonic())


@actor(category="jobs", retries=0, rate=RateLimit("4/s", burst=1))
def take_a_slot(seconds: float) -> None:
    note("start", time.monotonic())
    time.sleep(seconds)
    note("end", time.monotonic())
'''


@dataclass
class Limited:
    """An application whose jobs have limits, and who was killed when."""

    app: App
    store: Store
    killed: dict[int, float]

    def send(
        self, count: int, actor: str = "take-a-place", *, priority: str = "medium", **payload: object
    ) -> set[str]:
        payload = payload or {"gate": "gate"}
        return {self.app.send(actor, priority=priority, **payload) for _ in range(count)}

    def waits_for_a_place(self, job: str) -> bool:
        record = self.store.get(job)
        return record is not None and "waits for one of 2 places" in record.reason

    def starts(self) -> list[float]:
        return sorted(float(words[1]) for words in self.app.notes("start"))

    def running(self) -> dict[str, int]:
        """The jobs that run, and in which process each does."""
        return {job: pid for job, _, end, pid in self.runs() if end == float("inf")}

    def runs(self) -> list[tuple[str, float, float, int]]:
        """Each run: its job, start, end and process. One whose process was killed ends with that."""
        ends = {(job, pid): float(moment) for _, moment, job, pid, _ in self.app.notes("end")}
        return [
            (job, float(moment), ends.get((job, pid), self.killed.get(int(pid), float("inf"))), int(pid))
            for _, moment, job, pid, _ in self.app.notes("start")
        ]

    def most_at_once(self) -> int:
        """How many runs there ever were at the same time."""
        moments = [(start, 1) for _, start, _, _ in self.runs()] + [(end, -1) for _, _, end, _ in self.runs()]
        return max(itertools.accumulate(step for _, step in sorted(moments)))

    def kill(self, pid: int) -> None:
        self.killed[pid] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    def kill_all_of(self, worker: SupervisedWorker, pids: list[int]) -> None:
        self.killed |= dict.fromkeys(pids, time.monotonic())
        worker.end()

    def all_end(self, jobs: set[str]) -> None:
        until(lambda: {words[2] for words in self.app.notes("end")} == jobs, PATIENCE)


@pytest.fixture(params=["sqlite", "redis"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Limited]:
    url = "file:var" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    for app in app_in(tmp_path):
        app.write("broker.py", _BROKER.format(store=url, hold=HOLD))
        app.write("actors/limited.py", _ACTORS)
        with closing(open_store(url.replace("file:", f"file:{tmp_path}/"))) as store:
            yield Limited(app, store, {})


def test_a_job_that_holds_a_place_and_whose_process_is_killed_gets_its_place_again(limited: Limited) -> None:
    worker = limited.app.start(processes=2, threads=4)
    worker.ready()
    jobs = limited.send(6)
    until(lambda: len(limited.running()) == 2)
    for pid in set(limited.running().values()):
        limited.kill(pid)
        worker.wait_for("replaced")
    until(lambda: len(limited.running()) == 2)
    limited.app.open("gate")
    limited.all_end(jobs)
    assert limited.most_at_once() == 2
    assert {words[-1] for words in limited.app.notes("start")} == {"1"}, "none has used an attempt"


def test_the_places_of_a_worker_that_is_gone_are_free_when_their_hold_is_over(limited: Limited) -> None:
    """Nobody is there to run its jobs again: their messages are of a queue that only it has consumed."""
    gone = limited.app.start(processes=1, threads=4, queues=["jobs.high"])
    pids = gone.ready(1)
    limited.send(2, priority="high", gate="never")
    until(lambda: len(limited.running()) == 2)
    limited.app.start(processes=1, threads=4, queues=["jobs.medium"]).ready(1)
    limited.app.open("gate")
    jobs = limited.send(4)
    until(lambda: all(limited.waits_for_a_place(job) for job in jobs))
    limited.kill_all_of(gone, pids)
    limited.all_end(jobs)
    assert limited.most_at_once() == 2


def test_killed_holders_of_slots_let_no_more_start_than_the_rate_and_keep_nobody_waiting(
    limited: Limited,
) -> None:
    jobs = limited.send(16, "take-a-slot", seconds=0.4)
    begun = time.monotonic()
    worker = limited.app.start(processes=2, threads=4)
    worker.ready()
    for count in (3, 8):
        until(lambda: len(limited.starts()) >= count and limited.running())  # noqa: B023  it is called at once
        limited.kill(next(iter(limited.running().values())))
        worker.wait_for("replaced")
    until(lambda: len(limited.starts()) >= 12)
    worker.end()
    limited.app.start(processes=2, threads=4)
    limited.all_end(jobs)
    for number, start in enumerate(limited.starts()):
        early = begun + number * EVERY - start
        assert early < TOLERANCE + 0.05, "nobody starts before its slot, run again or not"
