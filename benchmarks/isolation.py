"""What a warm process adds to a job: `python -m benchmarks.isolation`.

One thread has a job that does nothing run in a runner, again and again, as a worker's thread does. What is printed is
from the call to its result; 2 ms are promised. The exit code says whether the median keeps that.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time

from benchmarks.apps.isolated import broker
from callboard.context import Run
from callboard.isolation import Isolation
from callboard.worker.isolation.pool import Pool
from callboard.worker.isolation.supervision import IsolatedBody

_PROMISED = 0.002
_JOBS = 2_000


def main() -> int:
    """Measure, and print."""
    pool = Pool(["benchmarks.apps.isolated"])
    try:
        first = _one(pool)
        cpu = time.process_time()
        times = [_one(pool) for _ in range(_JOBS)]
        cpu = (time.process_time() - cpu) / _JOBS
    finally:
        pool.close()
    median, most = statistics.median(times), statistics.quantiles(times, n=100)[98]
    print(f"the first job, which starts the processes: {first:.2f} s")
    print(f"a warm process adds {median * 1e3:.3f} ms to a job (median), 99% under {most * 1e3:.3f} ms")
    print(f"of the worker's processor time: {cpu * 1e3:.3f} ms")
    return 0 if median < _PROMISED else 1


def _one(pool: Pool) -> float:
    run = Run(job_id="job", actor="nothing", queue="isolated.medium", attempt=1, reporter=broker)
    body = IsolatedBody(
        pool,
        broker,
        Isolation(max_jobs=1_000_000),
        module="benchmarks.apps.isolated",
        name="nothing",
        wants_result=False,
        stopping=threading.Event(),
    )
    began = time.perf_counter()
    body.call(run, (), {})
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
