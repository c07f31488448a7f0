"""The job on Callboard, in as many categories as `BENCH_QUEUES` asks for."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks import job as measured
from broker import actor, broker
from callboard import Priority


@actor(category="bench")
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)


@actor(category="bench")
def lasting(seconds: float) -> None:
    """Take a while, and note in whose process."""
    if seconds:
        time.sleep(seconds)
    measured.note(seconds)


@actor(category="bench")
def sending() -> None:
    """Send a job, so that the worker has all the connections that it ever has."""
    bench.send(job=measured.payload())
    measured.note(0.0)


def _another(number: int) -> Any:
    def run(job: dict[str, Any]) -> None:
        measured.run(job)

    run.__name__ = run.__qualname__ = f"bench{number}"
    return actor(category=f"bench{number}")(run)


#: One actor a category; each category has a queue for each priority.
CATEGORIES = [
    bench,
    *(_another(number) for number in range(1, int(os.environ.get("BENCH_QUEUES", "1")) // len(Priority))),
]

__all__ = ["CATEGORIES", "bench", "broker", "lasting", "sending"]
