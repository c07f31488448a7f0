"""Jobs that are due in an hour must not hold back those that are due in five seconds, nor fill the worker's memory."""

from __future__ import annotations

import time

from benchmarks.bench import PATIENCE, Bench, percentile
from benchmarks.figures import Figures
from benchmarks.job import Counter, payload
from benchmarks.systems import System, Workers, wait_until
from benchmarks.systems.bullmq import BullmqRedis
from benchmarks.systems.callboard import CallboardFile, CallboardRabbitmq, CallboardRedis
from benchmarks.systems.celery import CeleryRabbitmq
from benchmarks.systems.dramatiq import DramatiqRabbitmq, DramatiqRedis
from benchmarks.systems.huey import HueySqlite

SYSTEMS: tuple[type[System], ...] = (
    CallboardFile,
    CallboardRabbitmq,
    CallboardRedis,
    DramatiqRabbitmq,
    DramatiqRedis,
    CeleryRabbitmq,
    HueySqlite,
    BullmqRedis,
)

COLUMNS = ("run", "early", "late p50 ms", "late p99 ms", "RSS MB before", "RSS MB after")
FAR, NEAR = 100_000, 1_000
_HOUR = 3600.0
_PAUSE = 2.0
_PATIENCE = 20.0
_WARM = 50


def measure(bench: Bench) -> Figures:
    """Once for each system: the figures are of a thousand jobs each."""
    systems = bench.systems(SYSTEMS)
    figures = Figures(COLUMNS, [system.name for system in systems])
    soon = 2.0 if bench.quick else 5.0
    for system_class in systems:
        bench.say(f"far future: {system_class.name}")
        with bench.fresh(system_class) as system:
            one(system, figures, far=bench.size(FAR, 2_000), soon=soon)
    figures.note(
        f'"run": of {NEAR:,} jobs that were due in {soon:.0f} s, behind {bench.size(FAR, 2_000):,} that are due '
        f"in an hour, those that had run {_PATIENCE:.0f} s after they all were due. Those of a "
        "system that sends slowly are due one after the other, those of a quick one at once. Memory is that of the "
        "worker's largest process before and after."
    )
    return figures


def one(system: System, figures: Figures, *, far: int, soon: float) -> None:
    """One system."""
    counter = Counter(system.folder / "counter")
    with system.working(counter.path) as workers:
        system.fill([payload() for _ in range(_WARM)])
        wait_until(lambda: counter.total() >= _WARM, seconds=PATIENCE, what="the start", workers=workers)
        figures.add(system.name, "RSS MB before", workers.memory_mb())
        system.fill_later(far, _HOUR)
        time.sleep(_PAUSE)  # a server may still be at work on what was sent to it without confirms
        system.fill_later(NEAR, soon)
        ran = _wait_for_the_near(counter, workers, soon + _PATIENCE)
        figures.add(system.name, "RSS MB after", workers.memory_mb())
    late = counter.latencies()
    figures.add(system.name, "run", ran)
    figures.add(system.name, "early", sum(1 for seconds in late if seconds < 0))
    if late:
        figures.add(system.name, "late p50 ms", percentile(late, 50) * 1e3)
        figures.add(system.name, "late p99 ms", percentile(late, 99) * 1e3)


def _wait_for_the_near(counter: Counter, workers: Workers, seconds: float) -> int:
    """How many of them ran in time to be counted."""
    end = time.monotonic() + seconds

    def reached() -> bool:
        return counter.total() >= _WARM + NEAR or time.monotonic() > end

    wait_until(reached, seconds=seconds + 10, what="the near jobs", workers=workers)
    return counter.total() - _WARM
