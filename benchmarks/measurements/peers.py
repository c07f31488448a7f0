"""Callboard beside its peers: the same job, each system once a round, in turn."""

from __future__ import annotations

from benchmarks.bench import PATIENCE, Bench, percentile, run_out
from benchmarks.figures import Figures
from benchmarks.job import Counter, payload
from benchmarks.systems import System, wait_until
from benchmarks.systems.bullmq import BullmqRedis
from benchmarks.systems.callboard import CallboardFile, CallboardRabbitmq, CallboardRedis
from benchmarks.systems.celery import CeleryRabbitmq
from benchmarks.systems.dramatiq import DramatiqRabbitmq, DramatiqRabbitmqConfirmed, DramatiqRedis
from benchmarks.systems.huey import HueySqlite
from benchmarks.systems.pika import PikaRabbitmq
from benchmarks.systems.taskiq import TaskiqRabbitmq

SYSTEMS: tuple[type[System], ...] = (
    CallboardFile,
    HueySqlite,
    CallboardRabbitmq,
    DramatiqRabbitmq,
    DramatiqRabbitmqConfirmed,
    CeleryRabbitmq,
    TaskiqRabbitmq,
    PikaRabbitmq,
    CallboardRedis,
    DramatiqRedis,
    BullmqRedis,
)

COLUMNS = (
    "send /s",
    "send_many /s",
    "processed /s",
    "2 processes /s",
    "p50 ms",
    "p99 ms",
    "CPU s per 10k",
    "RSS MB",
)

#: Seconds of work in a backlog, by the pace that is expected of a system; and the most that is waited for it.
_BACKLOG = 3.0
_MOST = 4.0


def measure(bench: Bench) -> Figures:
    """Every round measures every system once."""
    systems = bench.systems(SYSTEMS)
    figures = Figures(COLUMNS, [system.name for system in systems])
    for number in range(1, bench.rounds + 1):
        for system in systems:
            bench.say(f"peers, round {number} of {bench.rounds}: {system.name}")
            one_round(bench, system, figures)
    for sentence in bench.missing:
        figures.note(sentence)
    return figures


def one_round(bench: Bench, system_class: type[System], figures: Figures) -> None:
    """One round of one system."""
    name = system_class.name
    if not system_class.only_latency:
        _rates(bench, system_class, figures)
    with bench.fresh(system_class) as system:
        p50, p99 = latency(bench, system)
        figures.add(name, "p50 ms", p50)
        figures.add(name, "p99 ms", p99)


def _rates(bench: Bench, system_class: type[System], figures: Figures) -> None:
    name = system_class.name
    with bench.fresh(system_class) as system:
        count = bench.size(2_000)
        figures.add(name, "send /s", count / system.seconds_to_send(count))
    if system_class.bulk:
        with bench.fresh(system_class) as system:
            count = bench.size(20_000)
            figures.add(name, "send_many /s", count / system.seconds_to_send_many(count))
    with bench.fresh(system_class) as system:
        found = processed(bench, system, processes=1)
        figures.add(name, "processed /s", found["rate"])
        figures.add(name, "CPU s per 10k", found["cpu"])
        figures.add(name, "RSS MB", found["memory"])
    if system_class.most_processes >= 2 and not bench.quick:
        with bench.fresh(system_class) as system:
            figures.add(name, "2 processes /s", processed(bench, system, processes=2)["rate"])


def processed(bench: Bench, system: System, *, processes: int) -> dict[str, float]:
    """Jobs run a second out of a backlog, and what the workers used for it."""
    total = max(1, round(bench.size(int(system.pace * processes * _BACKLOG)) / 1000)) * 1000
    for _ in range(total // 1000):
        system.fill([payload() for _ in range(1000)])
    counter = Counter(system.folder / "counter")
    with system.working(counter.path, processes=processes) as workers:
        # The first tenth warms up: processes start, connections open, caches fill.
        ran, seconds, cpu = run_out(counter, workers, warm=total // 10, total=total, most_seconds=_MOST)
        return {"rate": ran / seconds, "cpu": cpu / ran * 10_000, "memory": workers.memory_mb()}


def latency(bench: Bench, system: System) -> tuple[float, float]:
    """Milliseconds from a send to the start of the job, at 100 jobs a second: p50 and p99."""
    counter = Counter(system.folder / "counter")
    count = bench.size(300)
    with system.working(counter.path) as workers:
        system.fill([payload() for _ in range(20)])
        wait_until(lambda: counter.total() >= 20, seconds=PATIENCE, what="the start", workers=workers)
        system.send_steadily(count, every=0.01)
        wait_until(
            lambda: counter.total() >= 20 + count, seconds=PATIENCE, what="the last job", workers=workers
        )
    found = counter.latencies()
    return percentile(found, 50) * 1e3, percentile(found, 99) * 1e3


def how_each_is_set_up() -> str:
    """A list for the reader."""
    return "\n".join(f"- **{system.name}**: {system.how}" for system in SYSTEMS)
