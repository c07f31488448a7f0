"""Celery on RabbitMQ."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.job import payload
from benchmarks.systems import Job, System, python_module


class CeleryRabbitmq(System):
    """With threads, as the others have them."""

    name = "celery, RabbitMQ"
    how = (
        "a quorum queue, `confirm_publish`, `task_acks_late`, results ignored, `--pool threads`, "
        "a prefetch multiplier of 64, without gossip and mingle; one worker a process."
    )
    server = "rabbitmq"
    pace = 2_000

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.celery_app", None)
        app = import_module("benchmarks.apps.celery_app")
        self._app = app.app
        self._bench = app.bench

    def environment(self) -> dict[str, str]:
        return {"BENCH_SERVER_URL": self.server_url, "BENCH_QUEUES": str(self.queues)}

    def send(self, job: Job) -> None:
        self._bench.delay(job=job)

    def fill_later(self, count: int, seconds: float) -> None:
        # Confirmed, too: its own work is what takes the time, and the broker shall not lag behind.
        for _ in range(count):
            self._bench.apply_async(kwargs={"job": payload(time.time() + seconds)}, countdown=seconds)

    def worker_commands(self, processes: int) -> list[list[str]]:
        options = ["--pool", "threads", "--concurrency", str(self.threads), "--loglevel", "WARNING"]
        options += ["--without-gossip", "--without-mingle"]
        return [
            python_module(
                "celery", "-A", "benchmarks.apps.celery_app", "worker", "-n", f"bench{n}@%h", *options
            )
            for n in range(processes)
        ]

    def close(self) -> None:
        self._app.close()
