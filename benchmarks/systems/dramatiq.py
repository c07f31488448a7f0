"""Stock Dramatiq on RabbitMQ: classic queues, without publisher confirms (its default) and with; and on Redis."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from benchmarks.job import payload
from benchmarks.systems import Job, System, python_module


class _Dramatiq(System):
    confirm: ClassVar[str] = ""

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.dramatiq_app", None)
        self._app = import_module("benchmarks.apps.dramatiq_app")
        # Fills queues: without confirms, since they would make the wait for a backlog long.
        self._filler = self._app.open_broker(confirm=False)
        self._filler.declare_queue("bench")

    def environment(self) -> dict[str, str]:
        return {
            "BENCH_SERVER_URL": self.server_url,
            "BENCH_CONFIRM": self.confirm,
            "BENCH_QUEUES": str(self.queues),
        }

    def send(self, job: Job) -> None:
        self._app.bench.send(job)

    def fill(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._filler.enqueue(self._app.bench.message(job))

    def fill_later(self, count: int, seconds: float) -> None:
        for _ in range(count):
            message = self._app.bench.message(payload(time.time() + seconds))
            self._filler.enqueue(message, delay=int(seconds * 1000))

    def worker_commands(self, processes: int) -> list[list[str]]:
        options = ["-p", str(processes), "-t", str(self.threads), "--skip-logging"]
        return [python_module("dramatiq", "benchmarks.apps.dramatiq_app", *options)]

    def close(self) -> None:
        self._filler.close()
        self._app.broker.close()


class DramatiqRabbitmq(_Dramatiq):
    """As it comes. It can lose a job at the send."""

    name = "dramatiq, RabbitMQ"
    how = "as it comes: classic queues, sends without confirms, its default middleware and prefetch."
    server = "rabbitmq"
    pace = 4_500


class DramatiqRabbitmqConfirmed(DramatiqRabbitmq):
    """With `confirm_delivery=True`."""

    name = "dramatiq, RabbitMQ, confirms"
    how = "the same with `confirm_delivery=True`."
    confirm = "1"


class DramatiqRedis(_Dramatiq):
    """As it comes."""

    name = "dramatiq, Redis"
    how = "as it comes, `appendfsync everysec`."
    server = "redis"
    pace = 2_500
