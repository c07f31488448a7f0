"""The job on huey, with its SQLite storage at its defaults (WAL, synchronous FULL)."""

from __future__ import annotations

import os
from typing import Any

from huey import SqliteHuey

from benchmarks import job as measured

huey = SqliteHuey("bench", filename=os.environ["BENCH_HUEY_FILE"], results=False)


@huey.task()  # type: ignore[untyped-decorator]
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)
