"""Callboard itself, with its whole middleware stack and a store, as `broker.py` wires it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from benchmarks.job import payload
from benchmarks.systems import Job, System
from callboard import Priority

_CHUNK = 1000


class Callboard(System):
    """On any driver. Its worker listens to one queue, or to those of six categories and four priorities."""

    bulk = True
    pace = 20_000

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        for name in [n for n in sys.modules if n in ("broker", "benchmarks.apps.callboard_app")]:
            del sys.modules[name]
        from prometheus_client import REGISTRY

        for collector in list(REGISTRY._collector_to_names):
            REGISTRY.unregister(collector)
        app = import_module("benchmarks.apps.callboard_app")
        self._actor = app.bench
        self._lasting = app.lasting
        self._sending = app.sending
        self._categories = app.CATEGORIES
        self._broker = app.broker

    def environment(self) -> dict[str, str]:
        return {
            "CALLBOARD_BROKER_URL": self.url(),
            "CALLBOARD_STORE_URL": f"file:{self.folder}",
            "CALLBOARD_ONE_HOST": "1",
            "CALLBOARD_LOG_LEVEL": "warning",
            "BENCH_QUEUES": str(self.queues),
        }

    def url(self) -> str:
        return f"file:{self.folder}"

    def send(self, job: Job) -> None:
        self._actor.send(job=job)

    def send_many(self, jobs: Sequence[Job]) -> None:
        self._actor.send_many([{"job": job} for job in jobs])

    def fill(self, jobs: Sequence[Job]) -> None:
        if self.queues == 1:
            self.send_many(jobs)
            return
        targets = [actor.using(priority=p) for actor in self._categories for p in Priority]
        for number, target in enumerate(targets):
            target.send_many([{"job": job} for job in jobs[number :: len(targets)]])

    def fill_later(self, count: int, seconds: float) -> None:
        for _ in range(count // _CHUNK):
            job = payload(time.time() + seconds)
            self._actor.using(delay=timedelta(seconds=seconds)).send_many([{"job": job}] * _CHUNK)

    def use_all_queues(self, count: int) -> int:
        self.fill([payload() for _ in range(count)])
        self._sending.send()
        return count + 2  # it counts, and so does what it sends

    def fill_lasting(self, seconds: Sequence[float]) -> None:
        """Put in jobs that take so long."""
        self._lasting.send_many([{"seconds": each} for each in seconds])

    def worker_commands(self, processes: int) -> list[list[str]]:
        callboard = str(Path(sys.executable).with_name("callboard"))
        return [
            [
                callboard, "--module", "benchmarks.apps.callboard_app", "worker",
                "--queues", "bench.medium" if self.queues == 1 else "bench*",
                "--processes", str(processes), "--threads", str(self.threads),
            ]
        ]  # fmt: skip

    def close(self) -> None:
        self._broker.close()


class CallboardFile(Callboard):
    """On the embedded queue."""

    name = "callboard, file"
    how = "the embedded queue, each send committed at `synchronous=FULL`; all middleware, records, metrics."

    pace = 20_000


class CallboardRabbitmq(Callboard):
    """On RabbitMQ."""

    name = "callboard, RabbitMQ"
    how = "quorum queues, each send confirmed; all middleware, records, metrics."
    server = "rabbitmq"
    pace = 14_000

    def url(self) -> str:
        return self.server_url


class CallboardRedis(Callboard):
    """On Redis."""

    name = "callboard, Redis"
    how = "`appendfsync everysec`; all middleware, records, metrics."
    server = "redis"

    def url(self) -> str:
        return self.server_url


CALLBOARDS: tuple[type[Callboard], ...] = (CallboardFile, CallboardRabbitmq, CallboardRedis)
