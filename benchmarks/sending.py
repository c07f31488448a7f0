"""What a send costs, beside huey's and the bare limits, interleaved in one run: `python -m benchmarks.sending`.

    python -m benchmarks.sending                     two tables
    python -m benchmarks.sending --only file,huey    of some ways only

Every way sends the same job in turn, one by one and in calls of a thousand: Callboard with its whole stack on each
driver, the driver alone with messages that are made already, huey, and a bare insert into SQLite. All are safe on
the disk when a send returns, but Redis's, which are within a second. CPU time says more than the rate does while
others use the machine; "beside" is what other threads of the process use, which is the recorder above all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dramatiq import Middleware
from prometheus_client import CollectorRegistry

from benchmarks.job import payload
from callboard import ActorDecorator, envelope
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.brokers.driver import Driver, Outgoing
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.servers import PrivateRabbitmq, PrivateRedis, PrivateServer, ServerMissing
from callboard.store import open_store
from callboard.store.base import Store
from middleware import stack

QUEUE = "bench.medium"
BULK = 1000
_PATIENCE = 120.0

_SERVERS: tuple[tuple[str, Callable[[], PrivateServer]], ...] = (
    ("RabbitMQ", PrivateRabbitmq),
    ("Redis", lambda: PrivateRedis(append_only=True)),
)


@dataclass
class Way:
    """A way to send.

    Attributes:
        one: Sends one job.
        bulk: Sends a thousand, if there is a way.
        settle: Waits for what is done later.
    """

    name: str
    one: Callable[[], object]
    bulk: Callable[[], object] | None = None
    settle: Callable[[], object] = lambda: None


@dataclass
class Cost:
    """What was measured of one way and size: a figure a round."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # seconds a job of the thread that sends
    beside: list[float] = field(default_factory=list)  # seconds a job of the process' other threads

    def add(self, send: Callable[[], object], calls: int, jobs: int, settle: Callable[[], object]) -> None:
        """Send so often, so many jobs in all."""
        process, thread, start = time.process_time(), time.thread_time(), time.perf_counter()
        for _ in range(calls):
            send()
        self.rates.append(jobs / (time.perf_counter() - start))
        own = time.thread_time() - thread
        settle()
        self.cpu.append(own / jobs)
        self.beside.append(max(0.0, time.process_time() - process - (time.thread_time() - thread)) / jobs)

    def cells(self) -> list[str]:
        """Jobs a second; microseconds of CPU a job, here and beside."""
        return [
            f"{statistics.median(self.rates):,.0f}",
            f"{statistics.median(self.cpu) * 1e6:.1f}",
            f"{statistics.median(self.beside) * 1e6:.1f}",
        ]


class NowhereDriver(StubDriver):
    """Puts nothing anywhere: what a send costs before and after its driver."""

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        """Forget them."""


def whole(name: str, url: str, folder: Path, closing: ExitStack) -> Iterator[Way]:
    """Callboard as an application has it, and its driver alone."""
    store = open_store(f"file:{folder}")
    broker = Broker(open_driver(url), store=store, middleware=_stack(store), one_host=True)
    closing.callback(broker.close)
    assert broker.recorder is not None
    recorder = broker.recorder
    yield _way(f"callboard, {name}", broker, lambda: recorder.flush(_PATIENCE))
    yield _driver_alone(f"its driver alone, {name}", broker.driver)


def _way(name: str, broker: Broker, settle: Callable[[], object] = lambda: None) -> Way:
    def bench(job: dict[str, Any]) -> None: ...

    actor = ActorDecorator(broker)(category="bench")(bench)
    jobs = [{"job": payload()} for _ in range(BULK)]
    return Way(name, lambda: actor.send(job=payload()), lambda: actor.send_many(jobs), settle)


def _driver_alone(name: str, driver: Driver) -> Way:
    driver.declare(QUEUE)
    body = b"x" * 380  # as long as the body of the job
    messages = [Outgoing(QUEUE, body, job_id) for job_id in envelope.new_job_ids(BULK)]
    return Way(
        name,
        lambda: driver.put(messages[:1], deadline=_PATIENCE),
        lambda: driver.put(messages, deadline=_PATIENCE),
    )


def huey(folder: Path) -> Way:
    """huey on SQLite, as it comes: WAL, `synchronous=FULL`."""
    os.environ["BENCH_HUEY_FILE"] = str(folder / "huey.db")
    app = importlib.import_module("benchmarks.apps.huey_app")
    return Way("huey, SQLite", lambda: app.bench(payload()))


def sqlite(folder: Path, closing: ExitStack) -> Way:
    """The least that a durable send on SQLite can be: a row a transaction."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    closing.callback(connection.close)
    for statement in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, body BLOB)",
    ):
        connection.execute(statement)
    rows = [(b"x" * 380,)] * BULK
    insert = "INSERT INTO messages (body) VALUES (?)"

    def bulk() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(insert, rows)
        connection.execute("COMMIT")

    return Way("a bare insert, SQLite", lambda: connection.execute(insert, rows[0]), bulk)


def phases(folder: Path, closing: ExitStack) -> Iterator[Way]:
    """A send with more and more of what belongs to it, its driver last."""
    store = open_store(f"file:{folder}")
    nowhere = NowhereDriver()
    counted = [part for part in _stack(store) if type(part).__name__ == "JobMetrics"]
    for name, driver, middleware, records in (
        ("checked and encoded", nowhere, [], False),
        ("+ metrics", nowhere, counted, False),
        ("+ records", nowhere, _stack(store), True),
        ("+ the embedded queue", open_driver(f"file:{folder}"), _stack(store), True),
    ):
        broker = Broker(driver, store=store if records else None, middleware=middleware)
        closing.callback(broker.close)
        settle = broker.recorder.flush if broker.recorder is not None else bool
        yield _way(name, broker, settle)


def _stack(store: Store) -> list[Middleware]:
    return stack(store, metrics=Metrics(CollectorRegistry()))


def measure(ways: Sequence[Way], *, rounds: int, jobs: int, bulks: int) -> dict[str, tuple[Cost, Cost]]:
    """Each way in turn, so that what the machine does beside it hits all alike."""
    costs = {way.name: (Cost(), Cost()) for way in ways}
    for way in ways:  # connections open, files grow, caches fill
        Cost().add(way.one, 100, 100, way.settle)
        if way.bulk is not None:
            Cost().add(way.bulk, 2, 2 * BULK, way.settle)
    for number in range(1, rounds + 1):
        for way in ways:
            one, bulk = costs[way.name]
            one.add(way.one, jobs, jobs, way.settle)
            if way.bulk is not None:
                bulk.add(way.bulk, bulks, bulks * BULK, way.settle)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return costs


def table(costs: dict[str, tuple[Cost, Cost]]) -> str:
    """The medians."""
    lines = [
        "| | send /s | CPU µs | beside | send_many /s | CPU µs per job | beside |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (one, bulk) in costs.items():
        cells = [*one.cells(), *(bulk.cells() if bulk.rates else ("-", "-", "-"))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sending", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=10, help="how often each way is measured")
    parser.add_argument("--jobs", type=int, default=300, help="how many jobs are sent one by one each time")
    parser.add_argument("--bulks", type=int, default=5, help="how many thousands are sent at once each time")
    parser.add_argument("--only", default="", help="ways whose names contain one of these, comma-separated")
    options = parser.parse_args()
    wanted = [part.strip().lower() for part in options.only.split(",") if part.strip()]
    how = {"rounds": options.rounds, "jobs": options.jobs, "bulks": options.bulks}
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder, ExitStack() as closing:
        ways = [*whole("file", f"file:{folder}", Path(folder), closing), huey(Path(folder))]
        ways.append(sqlite(Path(folder), closing))
        for name, make in _SERVERS:
            if wanted and not any(part in name.lower() for part in wanted):
                continue
            try:
                server = make()
            except ServerMissing as missing:
                print(f"{missing}; measuring the others", file=sys.stderr)
                continue
            closing.callback(server.close)
            server.start()
            records = Path(folder) / name
            records.mkdir()
            ways += whole(name, server.url, records, closing)
        ways = [way for way in ways if not wanted or any(part in way.name.lower() for part in wanted)]
        print(table(measure(ways, **how)))
        steps = Path(folder) / "phases"
        steps.mkdir()
        print(f"\n{table(measure(list(phases(steps, closing)), **how))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
