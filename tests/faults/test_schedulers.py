"""Three schedulers and two periodiqs serve the same schedules while they are killed and frozen, and so is their store:
each tick is one run, or there is a line that says why not.

The schedules are due every second, which no cron expression is: five of them make 200 ticks in 40 seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from callboard.brokers import open_driver
from callboard.brokers.driver import Driver
from callboard.errors import StoreUnavailable
from callboard.servers import PrivateRedis
from callboard.store import open_store
from callboard.store.base import TICKS_KEPT, Fate, Store

PATIENCE = 120.0  # seconds that an event may take on a slow machine
_ROOT = Path(__file__).parents[2]
_SCHEDULES = [f"sweep-{number}" for number in range(5)]

_APP = """
from dataclasses import dataclass
from datetime import UTC, timedelta
import os

from callboard import ActorDecorator, current_job
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.cron import Cron
from callboard.store import open_store
from middleware import stack


@dataclass(frozen=True, eq=False, repr=False)
class EverySecond(Cron):
    def next_after(self, moment):
        return self.floor(moment) + timedelta(seconds=1)

    def floor(self, moment):
        return moment.astimezone(UTC).replace(microsecond=0)


store = open_store({store!r})
broker = Broker(open_driver("file:var"), store=store, middleware=stack(store), one_host=True)
actor = ActorDecorator(broker)


def declare(name):
    @actor(name=name, category="night", periodic=EverySecond("* * * * *", misfire="run all", misfire_limit=1000))
    def sweep():
        runs = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(runs, f"{{current_job().id}}\\n".encode())
        os.close(runs)


for name in {names!r}:
    declare(name)
"""

_COMMANDS = {
    "scheduler": ["-m", "callboard.cli", "scheduler"],
    "periodiq": ["-c", "import periodiq; periodiq.entrypoint()", "broker:broker"],
    "worker": ["-m", "callboard.cli", "worker", "-p", "1", "-t", "4"],
}


class Town:
    """Processes of one application, in a folder of its own."""

    def __init__(self, folder: Path, store_url: str) -> None:
        self.folder = folder
        self.store_url = store_url
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "broker.py").write_text(_APP.format(store=store_url, names=_SCHEDULES))

    def start(self, name: str) -> None:
        """Start a process; its name begins with what it is."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CALLBOARD_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *_COMMANDS[name.partition("-")[0]]],
                cwd=self.folder,
                env=environment | {"PYTHONPATH": f"{_ROOT}:{self.folder}"},
                stdout=log,
                stderr=log,
            )

    def tell(self, name: str, number: signal.Signals) -> None:
        """Send a signal; wait for the end that it makes."""
        process = self._running[name]
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(PATIENCE)

    def has_ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def runs(self) -> list[str]:
        file = self.folder / "runs"
        return file.read_text().split() if file.exists() else []

    def log(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


@pytest.fixture
def town(tmp_path: Path, own_redis: PrivateRedis) -> Iterator[Town]:
    town = Town(tmp_path, own_redis.url)
    yield town
    town.stop()


def _eventually(holds: Callable[[], bool], town: Town) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(StoreUnavailable):  # it was only just started again
            if holds():
                return
        assert time.monotonic() < end, town.log()
        time.sleep(0.1)


def _served_until(store: Store) -> float | None:
    """Up to when all schedules are served; None before all have begun."""
    states = store.schedules()
    moments = [states[name].until for name in _SCHEDULES if name in states]
    known = [moment for moment in moments if moment is not None]
    return min(known) if len(known) == len(_SCHEDULES) else None


def _missed(store: Store, name: str) -> set[int]:
    """The ticks of which it is told that no job was sent, and why."""
    return {
        second
        for tick in store.ticks(name, limit=TICKS_KEPT)
        if tick.fate not in (Fate.ON_TIME, Fate.CAUGHT_UP) and tick.reason
        for second in range(int(tick.first or tick.due), int(tick.due) + 1)
    }


def _is_empty(driver: Driver) -> bool:
    counts = driver.counts(["night.medium"])["night.medium"]
    return counts.ready == counts.claimed == 0


def _disturb(town: Town, redis: PrivateRedis, luck: random.Random) -> None:
    """Kill or freeze somebody, or the store."""
    everybody = ["scheduler-0", "scheduler-1", "scheduler-2", "periodiq-0", "periodiq-1"]
    victim, what = luck.choice(everybody), luck.choice(["kill", "kill", "freeze", "store", "frozen store"])
    if what == "store":
        redis.kill()
        time.sleep(luck.uniform(0, 2))
        redis.start()
    elif what == "frozen store":
        with redis.frozen():
            time.sleep(luck.uniform(0, 2))
    elif what == "kill":
        town.tell(victim, signal.SIGKILL)
        town.start(victim)
    else:
        town.tell(victim, signal.SIGSTOP)
        time.sleep(luck.uniform(0, 3))
        town.tell(victim, signal.SIGCONT)
    for name in everybody:
        if town.has_ended(name):  # periodiq ends when it can't send for long
            town.start(name)


@pytest.mark.parametrize(
    ("ticks", "seed"),
    [(30, 1), *(pytest.param(200, seed, marks=pytest.mark.slow) for seed in (2, 3))],
)
def test_each_tick_is_one_run_whatever_becomes_of_who_serves_it(
    town: Town, own_redis: PrivateRedis, ticks: int, seed: int
) -> None:
    luck = random.Random(seed)
    with ExitStack() as stack:
        store = open_store(own_redis.url)
        stack.callback(store.close)
        for name in ("scheduler-0", "scheduler-1", "scheduler-2", "periodiq-0", "periodiq-1"):
            town.start(name)
        _eventually(lambda: _served_until(store) is not None, town)
        first = {name: int(state.until or 0) + 1 for name, state in store.schedules().items()}
        last = max(first.values()) + ticks // len(_SCHEDULES)
        while time.time() < last:
            time.sleep(luck.uniform(0.5, 2))
            _disturb(town, own_redis, luck)
        last = int(time.time())
        _eventually(lambda: (_served_until(store) or 0) >= last, town)
        for name in ("scheduler-0", "scheduler-1", "scheduler-2", "periodiq-0", "periodiq-1"):
            town.tell(name, signal.SIGKILL)

        expected = {f"{name}:{second}" for name in _SCHEDULES for second in range(first[name], last + 1)}
        told = {f"{name}:{second}" for name in _SCHEDULES for second in _missed(store, name)}
        town.start("worker")
        _eventually(lambda: expected - told <= set(town.runs()), town)
        with closing(open_driver("file:var", folder=town.folder)) as driver:
            driver.declare("night.medium")
            # A tick that was sent twice is in the queue twice. All of it has to go.
            _eventually(lambda: _is_empty(driver), town)
        runs = Counter(town.runs())
        assert {job: count for job, count in runs.items() if count > 1} == {}
        assert len(expected) >= ticks
