"""Metrics for Prometheus: what is counted, and how the numbers of several processes become one worker's."""

from callboard.metrics.catalogue import QUEUE_LABELS, SCHEDULER_METRICS, SHARED_METRICS, WORKER_METRICS
from callboard.metrics.jobs import (
    BUCKETS,
    COUNTERS,
    IN_PROGRESS,
    LABELS,
    QUEUE_SECONDS,
    RUN_SECONDS,
    JobNumbers,
    Metrics,
)

__all__ = [
    "BUCKETS",
    "COUNTERS",
    "IN_PROGRESS",
    "LABELS",
    "QUEUE_LABELS",
    "QUEUE_SECONDS",
    "RUN_SECONDS",
    "SCHEDULER_METRICS",
    "SHARED_METRICS",
    "WORKER_METRICS",
    "JobNumbers",
    "Metrics",
]
