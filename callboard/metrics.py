"""The names of the metrics, and what each one counts. Labels: category, actor, priority."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

LABELS = ("category", "actor", "priority")

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)


class Metrics:
    """All of Callboard's metrics, in one registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"callboard_jobs_{name}", text, LABELS, registry=registry)

        self.enqueued = counter("enqueued", "Jobs that were accepted.")
        self.started = counter("started", "Runs that were started.")
        self.succeeded = counter("succeeded", "Jobs that succeeded.")
        self.failed = counter("failed", "Runs that failed, whether they are tried again or not.")
        self.retried = counter("retried", "Failed runs that are tried again.")
        self.dead = counter("dead", "Jobs that became dead letters.")
        self.in_progress = Gauge(
            "callboard_jobs_in_progress", "Jobs that run now.", LABELS, registry=registry
        )
        self.run_seconds = Histogram(
            "callboard_job_run_seconds", "How long runs took.", LABELS, registry=registry, buckets=_SECONDS
        )
        self.queue_seconds = Histogram(
            "callboard_job_queue_seconds",
            "How long jobs waited from being due to their start.",
            LABELS,
            registry=registry,
            buckets=_SECONDS,
        )
