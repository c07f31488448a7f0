"""A worker that listens to 24 queues: its connections to the server, and what it uses while nothing comes."""

from __future__ import annotations

import time

from benchmarks.bench import PATIENCE, Bench
from benchmarks.figures import Figures
from benchmarks.job import Counter
from benchmarks.systems import System, Workers, wait_until
from benchmarks.systems.bullmq import BullmqRedis
from benchmarks.systems.callboard import CallboardFile, CallboardRabbitmq, CallboardRedis
from benchmarks.systems.celery import CeleryRabbitmq
from benchmarks.systems.dramatiq import DramatiqRabbitmq, DramatiqRedis

SYSTEMS: tuple[type[System], ...] = (
    CallboardFile,
    CallboardRabbitmq,
    CallboardRedis,
    DramatiqRabbitmq,
    DramatiqRedis,
    CeleryRabbitmq,
    BullmqRedis,
)

COLUMNS = ("connections", "idle CPU %", "RSS MB")
QUEUES = 24


def measure(bench: Bench) -> Figures:
    """Once for each system."""
    systems = bench.systems(SYSTEMS)
    figures = Figures(COLUMNS, [system.name for system in systems])
    watched, settles = (2.0, 1.0) if bench.quick else (15.0, 3.0)
    for system_class in systems:
        bench.say(f"many queues: {system_class.name}")
        server = bench.server(system_class)
        with bench.fresh(system_class, queues=QUEUES) as system:
            counter = Counter(system.folder / "counter")
            with system.working(counter.path) as workers:
                wait_for(counter, system.use_all_queues(QUEUES), workers)
                time.sleep(settles)
                cpu, started = workers.cpu_seconds(), time.perf_counter()
                time.sleep(watched)
                used = (workers.cpu_seconds() - cpu) / (time.perf_counter() - started)
                figures.add(system.name, "idle CPU %", used * 100)
                figures.add(system.name, "RSS MB", workers.memory_mb())
                if server is not None:
                    figures.add(system.name, "connections", workers.connections(server.port))
    figures.note(
        f"One worker process on {QUEUES} queues, which has run jobs; Callboard's has also sent one. The connections of "
        "that process, and the CPU, in percent of one core, of all processes of the command within "
        f"{watched:.0f} s of doing nothing."
    )
    return figures


def wait_for(counter: Counter, jobs: int, workers: Workers) -> None:
    """Wait until so many have run."""
    wait_until(lambda: counter.total() >= jobs, seconds=PATIENCE, what="the start", workers=workers)
