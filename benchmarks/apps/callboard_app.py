"""The job on Callboard."""

from __future__ import annotations

from typing import Any

from benchmarks import job as measured
from broker import actor, broker


@actor(category="bench")
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)


__all__ = ["bench", "broker"]
