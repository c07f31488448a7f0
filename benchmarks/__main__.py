"""`make bench`: the same job on Callboard and its peers, interleaved in one run; medians and ratios.

    python -m benchmarks                      what make bench runs
    python -m benchmarks --rounds 5 --only file,huey

Each round measures every system once, in turn, so that what the machine does beside it hits all alike.
The rates of two runs can't be compared; the ratios within one can, and gaps under 1.5 are ties.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.job import Counter, payload
from benchmarks.report import Report
from benchmarks.systems import System, wait_until
from benchmarks.systems.callboard import CallboardFile, CallboardRabbitmq, CallboardRedis
from benchmarks.systems.dramatiq import DramatiqRabbitmq, DramatiqRabbitmqConfirmed, DramatiqRedis
from benchmarks.systems.huey import HueySqlite
from callboard.servers import PrivateRabbitmq, PrivateRedis, PrivateServer, ServerMissing

SYSTEMS: tuple[type[System], ...] = (
    CallboardFile,
    HueySqlite,
    CallboardRabbitmq,
    DramatiqRabbitmq,
    DramatiqRabbitmqConfirmed,
    CallboardRedis,
    DramatiqRedis,
)

SERVERS: dict[str, Callable[[], PrivateServer]] = {
    "rabbitmq": PrivateRabbitmq,
    "redis": lambda: PrivateRedis(append_only=True),  # fsynced once a second
}

PATIENCE = 120.0


@dataclass(frozen=True)
class Sizes:
    """How many jobs each measurement takes."""

    send: int = 3_000
    send_many: int = 20_000
    processed: int = 20_000
    latency: int = 300


def send_rate(system: System, sizes: Sizes) -> float:
    """Jobs sent a second, one after the other, by one thread."""
    jobs = [payload() for _ in range(sizes.send)]
    for job in jobs[:50]:
        system.send(job)
    started = time.perf_counter()
    for job in jobs:
        system.send(job)
    return sizes.send / (time.perf_counter() - started)


def send_many_rate(system: System, sizes: Sizes) -> float:
    """Jobs sent a second, in calls of a thousand."""
    jobs = [payload() for _ in range(1000)]
    system.send_many(jobs[:50])
    started = time.perf_counter()
    for _ in range(sizes.send_many // 1000):
        system.send_many(jobs)
    return sizes.send_many / (time.perf_counter() - started)


def processed(system: System, sizes: Sizes, *, processes: int) -> dict[str, float]:
    """Jobs run a second out of a backlog, and what the worker used for it."""
    total = sizes.processed * processes
    for _ in range(total // 1000):
        system.send_many([payload() for _ in range(1000)])
    counter = Counter(system.folder / "counter")
    with system.working(counter.path, processes=processes) as workers:
        # The first tenth warms up: processes start, connections open, caches fill.
        warm = total // 10
        wait_until(lambda: counter.total() >= warm, seconds=PATIENCE, what="the start", workers=workers)
        first, cpu, started = counter.total(), workers.cpu_seconds(), time.perf_counter()
        wait_until(lambda: counter.total() >= total, seconds=PATIENCE, what="the backlog", workers=workers)
        seconds, used = time.perf_counter() - started, workers.cpu_seconds() - cpu
        memory = workers.memory_mb()
        wait_until(lambda: system.waiting() == 0, seconds=PATIENCE, what="the last acks", workers=workers)
    return {"rate": (total - first) / seconds, "cpu": used / (total - first) * 10_000, "memory": memory}


def latency(system: System, sizes: Sizes) -> dict[str, float]:
    """Milliseconds from a send to the start of the job, at 100 jobs a second."""
    counter = Counter(system.folder / "counter")
    with system.working(counter.path) as workers:
        for _ in range(20):
            system.send(payload())
        wait_until(lambda: counter.total() >= 20, seconds=PATIENCE, what="the start", workers=workers)
        next_send = time.perf_counter()
        for _ in range(sizes.latency):
            next_send += 0.01
            time.sleep(max(0.0, next_send - time.perf_counter()))
            system.send(payload(time.time()))
        total = 20 + sizes.latency
        wait_until(lambda: counter.total() >= total, seconds=PATIENCE, what="the last job", workers=workers)
    found = counter.latencies()
    return {"p50": found[len(found) // 2] * 1e3, "p99": found[int(len(found) * 0.99)] * 1e3}


def fresh_url(server: PrivateServer | None) -> str:
    """The URL of an empty vhost or database."""
    if isinstance(server, PrivateRabbitmq):
        return server.add_vhost(f"bench-{uuid.uuid4().hex}")
    if isinstance(server, PrivateRedis):
        server.empty()
        return server.url
    return ""


def measure(system_class: type[System], report: Report, sizes: Sizes, server: PrivateServer | None) -> None:
    """One round of one system."""

    def fresh(run: Callable[[System], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
            system = system_class(Path(folder), server_url=fresh_url(server))
            try:
                run(system)
            finally:
                system.close()

    name = system_class.name
    fresh(lambda s: report.add(name, "send /s", send_rate(s, sizes)))
    fresh(lambda s: report.add(name, "send_many /s", send_many_rate(s, sizes)))

    def one(system: System) -> None:
        found = processed(system, sizes, processes=1)
        report.add(name, "processed /s", found["rate"])
        report.add(name, "CPU s per 10k", found["cpu"])
        report.add(name, "RSS MB", found["memory"])

    def two(system: System) -> None:
        report.add(name, "2 processes /s", processed(system, sizes, processes=2)["rate"])

    def late(system: System) -> None:
        found = latency(system, sizes)
        report.add(name, "p50 ms", found["p50"])
        report.add(name, "p99 ms", found["p99"])

    fresh(one)
    if system_class is not HueySqlite:
        fresh(two)
    fresh(late)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each system is measured")
    parser.add_argument(
        "--only", default="", help="systems whose names contain one of these, comma-separated"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, to see that it works")
    parser.add_argument(
        "--write", type=Path, help="write the tables into this Markdown file, between its marks"
    )
    options = parser.parse_args()
    wanted = [part.strip().lower() for part in options.only.split(",") if part.strip()]
    systems = [s for s in SYSTEMS if not wanted or any(part in s.name.lower() for part in wanted)]
    sizes = Sizes(300, 2_000, 2_000, 50) if options.quick else Sizes()
    report = Report([s.name for s in systems])
    with ExitStack() as stack:
        servers: dict[str | None, PrivateServer] = {}
        for name in sorted({s.server for s in systems if s.server is not None}):
            try:
                servers[name] = SERVERS[name]()
            except ServerMissing as missing:
                print(f"{missing}; measuring the others")
                systems = [s for s in systems if s.server != name]
            else:
                stack.callback(servers[name].close)
                servers[name].start()
        for number in range(1, options.rounds + 1):
            for system in systems:
                started = time.perf_counter()
                measure(system, report, sizes, servers.get(system.server))
                print(
                    f"round {number} of {options.rounds}: {system.name}, {time.perf_counter() - started:.0f} s",
                    file=sys.stderr,
                )
    print(report.markdown())
    if options.write is not None:
        report.write_into(options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
