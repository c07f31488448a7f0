"""Callboard itself, with its whole middleware stack and a store, as `broker.py` wires it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems import System


class _Callboard(System):
    scheme: ClassVar[str]

    def __init__(self, folder: Path, *, server_url: str = "") -> None:
        super().__init__(folder, server_url=server_url)
        os.environ |= self.environment()
        for name in [n for n in sys.modules if n in ("broker", "benchmarks.apps.callboard_app")]:
            del sys.modules[name]
        from prometheus_client import REGISTRY

        for collector in list(REGISTRY._collector_to_names):
            REGISTRY.unregister(collector)
        app = import_module("benchmarks.apps.callboard_app")
        self._actor = app.bench
        self._broker = app.broker

    def environment(self) -> dict[str, str]:
        return {
            "CALLBOARD_BROKER_URL": self.url(),
            "CALLBOARD_STORE_URL": f"file:{self.folder}",
            "CALLBOARD_LOG_LEVEL": "warning",
        }

    def url(self) -> str:
        return f"file:{self.folder}"

    def send(self, job: dict[str, Any]) -> None:
        self._actor.send(job=job)

    def send_many(self, jobs: list[dict[str, Any]]) -> None:
        self._actor.send_many([{"job": job} for job in jobs])

    def waiting(self) -> int:
        counts = self._broker.driver.counts(["bench.medium"])["bench.medium"]
        return int(counts.ready + counts.claimed)

    def worker_command(self, processes: int) -> list[str]:
        callboard = str(Path(sys.executable).with_name("callboard"))
        return [
            callboard, "--module", "benchmarks.apps.callboard_app", "worker",
            "--queues", "bench.*", "--processes", str(processes), "--threads", str(self.threads),
        ]  # fmt: skip

    def close(self) -> None:
        self._broker.close()


class CallboardFile(_Callboard):
    """On the embedded queue: sends at `synchronous=FULL`."""

    name = "callboard, file"


class CallboardRabbitmq(_Callboard):
    """On RabbitMQ: quorum queues, each send confirmed."""

    name = "callboard, RabbitMQ"
    server = "rabbitmq"

    def url(self) -> str:
        return self.server_url


class CallboardRedis(_Callboard):
    """On Redis with `appendfsync everysec`."""

    name = "callboard, Redis"
    server = "redis"

    def url(self) -> str:
        return self.server_url
