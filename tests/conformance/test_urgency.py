"""That the most urgent job is next, on every driver, however many others wait or were claimed before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from callboard import Priority
from callboard.worker.worker import Worker
from tests.conformance.drivers import DRIVERS
from tests.conformance.rig import PATIENCE, OwnCrew, Rig, dismantle, make_rig
from tests.patience import until

pytestmark = pytest.mark.usefixtures("plain_tracebacks")

_BACKLOG = 300
#: Of every eight claims one takes the oldest, where messages are claimed and where threads take them; and RabbitMQ's
#: low ones may arrive first.
_TURNS = 8


@pytest.fixture(params=sorted(DRIVERS))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make_rig(request.param, "callboard", DRIVERS[request.param](request))
    yield rig
    dismantle(rig)


class Turns:
    """Jobs of which each runs until it is its turn to end."""

    def __init__(self, rig: Rig) -> None:
        self.started: list[str] = []
        self._ends = threading.Semaphore(0)
        self.actor = rig.actor(name="turn")(self._take)

    def _take(self, name: str) -> None:
        self.started.append(name)
        self._ends.acquire(timeout=PATIENCE)

    def end(self, count: int = 1) -> None:
        """Let so many end, and wait until as many others have started."""
        wanted = len(self.started) + count
        self._ends.release(count)
        until(lambda: len(self.started) >= wanted)

    def let_go(self) -> None:
        self._ends.release(10_000)


@pytest.fixture
def turns(rig: Rig) -> Iterator[Turns]:
    turns = Turns(rig)
    yield turns
    turns.let_go()


def test_a_critical_job_is_next_however_many_low_ones_wait(rig: Rig, turns: Turns) -> None:
    turns.actor.using(priority=Priority.LOW).send_many([{"name": "low"}] * _BACKLOG)
    crew: Any = rig.start(threads=2)
    assert isinstance(crew, OwnCrew)
    until(lambda: len(turns.started) == 2)
    turns.end(30)  # at once: so it takes them for short, and claims some ahead
    until(lambda: _is_settled(crew._worker))
    before = len(turns.started)
    turns.actor.using(priority=Priority.CRITICAL).send("critical")
    for _ in range(_TURNS):
        turns.end()
    assert "critical" in turns.started[before : before + _TURNS]


def _is_settled(worker: Worker) -> bool:
    """Whether it has given back what it claimed ahead, and has seen that its jobs are long."""
    since = [started for _, started in list(worker._running.values())]
    return worker.claimed == 0 and len(since) == 2 and time.perf_counter() - max(since) > 1


def test_a_low_job_is_never_left_behind_by_an_endless_stream_of_urgent_ones(rig: Rig, turns: Turns) -> None:
    turns.actor.using(priority=Priority.LOW).send("low")
    turns.actor.using(priority=Priority.CRITICAL).send_many([{"name": "critical"}] * _BACKLOG)
    rig.start(threads=1)
    until(lambda: turns.started)
    for _ in range(30):
        turns.end()
    assert turns.started[:31].count("low") == 1
