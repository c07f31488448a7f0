"""What it costs that very many jobs wait for a limit: the processor's time of a worker while they do.

    python -m benchmarks.limits                     100,000 jobs of an actor with one place, which is taken
    python -m benchmarks.limits --jobs 10000 --seconds 10
    python -m benchmarks.limits --rate 1/minute     of an actor with a rate

All is in one process and two SQLite files: jobs in one, what is known of limits in the other. First each job is looked
at and sent to wait. Then the worker is measured for some seconds, in which the jobs whose time has come look again.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from callboard import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.file import FileDriver
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware import stack

_AT_ONCE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--jobs", type=int, default=100_000, help="how many wait")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long the worker is measured")
    parser.add_argument("--rate", help="measure a rate, such as 1/minute, instead of places")
    options = parser.parse_args()
    limit: dict[str, Any] = {"rate": options.rate} if options.rate else {"concurrency": 1}
    with tempfile.TemporaryDirectory(prefix="callboard-limits-") as folder:
        _measure(Path(folder), options.jobs, options.seconds, limit)


def _measure(folder: Path, jobs: int, seconds: float, limit: dict[str, Any]) -> None:
    store = open_store(f"file:{folder}")
    broker = Broker(FileDriver(folder), store=store, middleware=stack(store))
    release = threading.Event()

    @ActorDecorator(broker)(category="jobs", **limit)
    def hold() -> None:
        release.wait()

    for start in range(0, jobs, _AT_ONCE):
        hold.send_many([{}] * min(_AT_ONCE, jobs - start))
    worker = Worker(broker, sorted(broker.queues), threads=8)
    began, spent = time.monotonic(), time.process_time()
    worker.start()
    while broker.driver.counts(["jobs.medium"])["jobs.medium"].ready:
        time.sleep(0.2)
    taken, spent = time.monotonic() - began, time.process_time() - spent
    print(
        f"{jobs:,} jobs were sent to wait in {taken:.1f} s: {spent / jobs * 1e6:,.0f} µs of the processor each"
    )
    spent = time.process_time()
    time.sleep(seconds)
    spent = time.process_time() - spent
    print(f"then, while they waited: {spent / seconds:.2%} of a core, over {seconds:g} s")
    release.set()
    worker.stop(grace=0)
    broker.close()


if __name__ == "__main__":
    main()
