"""A good job, which counts itself in the file `COMPANY_DONE`, and the bad ones beside it."""

from __future__ import annotations

import os
import time

from benchmarks.apps import bad_jobs
from broker import actor, broker


@actor(category="jobs", retries=0)
def work() -> None:
    """Take 50 ms."""
    time.sleep(0.05)
    descriptor = os.open(os.environ["COMPANY_DONE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, b".")
    os.close(descriptor)


__all__ = ["bad_jobs", "broker", "work"]
