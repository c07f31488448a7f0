"""Jobs of 0, 1, 10 and 1000 ms, mixed, over two worker processes: neither may hoard long ones while the other idles."""

from __future__ import annotations

import random
import time

from benchmarks.bench import PATIENCE, Bench
from benchmarks.figures import Figures
from benchmarks.job import Counter
from benchmarks.systems import wait_until
from benchmarks.systems.callboard import CALLBOARDS, Callboard

COLUMNS = ("took s", "evenly shared s", "took to evenly shared", "less to more busy")
MIX = {0.0: 4000, 0.001: 1000, 0.01: 500, 1.0: 80}
PROCESSES = 2
_WARM = 50


def measure(bench: Bench) -> Figures:
    """As often as there are rounds, with the same sequence of jobs."""
    systems = bench.systems(CALLBOARDS)
    figures = Figures(COLUMNS, [system.name for system in systems])
    jobs = [seconds for seconds, count in MIX.items() for _ in range(bench.size(count, count // 2))]
    random.Random(1).shuffle(jobs)
    even = sum(jobs) / (PROCESSES * Callboard.threads)
    for number in range(1, bench.rounds + 1):
        for system_class in systems:
            bench.say(f"mixed, round {number} of {bench.rounds}: {system_class.name}")
            with bench.fresh(system_class) as system:
                took, balance = one(system, jobs)
            figures.add(system_class.name, "took s", took)
            figures.add(system_class.name, "evenly shared s", even)
            figures.add(system_class.name, "took to evenly shared", took / even)
            figures.add(system_class.name, "less to more busy", balance)
    mix = ", ".join(f"{jobs.count(seconds):,} of {seconds * 1000:.0f} ms" for seconds in MIX)
    figures.note(
        f"{mix}, in one shuffled sequence, on {PROCESSES} processes of {Callboard.threads} threads. Evenly shared, "
        "without any cost, they would take as long as the second column says; since the longest takes a second, nobody "
        "can promise less than a second more. The last column: seconds of jobs run by the less busy process, to those "
        "of the busier one."
    )
    return figures


def one(system: Callboard, jobs: list[float]) -> tuple[float, float]:
    """How long the jobs took, and how evenly they were shared (1: entirely)."""
    counter = Counter(system.folder / "counter")
    with system.working(counter.path, processes=PROCESSES) as workers:
        system.fill_lasting([0.0] * _WARM)
        wait_until(lambda: counter.total() >= _WARM, seconds=PATIENCE, what="the start", workers=workers)
        started = time.perf_counter()
        system.fill_lasting(jobs)
        total = _WARM + len(jobs)
        wait_until(lambda: counter.total() >= total, seconds=PATIENCE, what="the jobs", workers=workers)
        took = time.perf_counter() - started
    busy = sorted(sum(seconds) for seconds in counter.by_process().values())
    return took, busy[0] / busy[-1] if len(busy) == PROCESSES else 0.0
