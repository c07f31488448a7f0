"""Stock Dramatiq on RabbitMQ: classic queues, without publisher confirms (its default) and with; and on Redis."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems import System, python_module


class _Dramatiq(System):
    confirm: ClassVar[str] = ""

    def __init__(self, folder: Path, *, server_url: str = "") -> None:
        super().__init__(folder, server_url=server_url)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.dramatiq_app", None)
        self._app = import_module("benchmarks.apps.dramatiq_app")

    def environment(self) -> dict[str, str]:
        return {"BENCH_SERVER_URL": self.server_url, "BENCH_CONFIRM": self.confirm}

    def send(self, job: dict[str, Any]) -> None:
        self._app.bench.send(job)

    def send_many(self, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            self._app.bench.send(job)

    def worker_command(self, processes: int) -> list[str]:
        return python_module(
            "dramatiq",
            "benchmarks.apps.dramatiq_app",
            "-p",
            str(processes),
            "-t",
            str(self.threads),
            "--skip-logging",
        )

    def close(self) -> None:
        self._app.broker.close()


class DramatiqRabbitmq(_Dramatiq):
    """As it comes. It can lose a job at the send."""

    name = "dramatiq, RabbitMQ"
    server = "rabbitmq"

    def waiting(self) -> int:
        return int(self._app.broker.get_queue_message_counts("bench")[0])


class DramatiqRabbitmqConfirmed(DramatiqRabbitmq):
    """With `confirm_delivery=True`."""

    name = "dramatiq, RabbitMQ, confirms"
    confirm = "1"


class DramatiqRedis(_Dramatiq):
    """As it comes."""

    name = "dramatiq, Redis"
    server = "redis"

    def waiting(self) -> int:
        # Its hash of messages has those that run, too.
        return int(self._app.broker.client.hlen("dramatiq:bench.msgs"))
