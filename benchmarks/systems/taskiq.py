"""taskiq on RabbitMQ, by taskiq-aio-pika."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.job import payload
from benchmarks.systems import Job, System


class TaskiqRabbitmq(System):
    """On an event loop, as it is meant to be used."""

    name = "taskiq, RabbitMQ"
    how = (
        "a quorum queue, each send confirmed, an async job, 100 at once, a prefetch of 200, "
        "`--ack-type when_executed`; its bulk is `gather` over a thousand sends."
    )
    server = "rabbitmq"
    pace = 2_000
    bulk = True

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.taskiq_app", None)
        self._app = import_module("benchmarks.apps.taskiq_app")
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._app.broker.startup())

    def environment(self) -> dict[str, str]:
        return {"BENCH_SERVER_URL": self.server_url}

    def send(self, job: Job) -> None:
        self._loop.run_until_complete(self._app.bench.kiq(job))

    def send_many(self, jobs: Sequence[Job]) -> None:
        async def all_at_once() -> None:
            await asyncio.gather(*(self._app.bench.kiq(job) for job in jobs))

        self._loop.run_until_complete(all_at_once())

    def seconds_to_send(self, count: int) -> float:
        async def one_by_one() -> float:
            for _ in range(50):
                await self._app.bench.kiq(payload())
            jobs = [payload() for _ in range(count)]
            started = time.perf_counter()
            for job in jobs:
                await self._app.bench.kiq(job)
            return time.perf_counter() - started

        return self._loop.run_until_complete(one_by_one())

    def send_steadily(self, count: int, *, every: float) -> None:
        async def steadily() -> None:
            next_send = time.perf_counter()
            for _ in range(count):
                next_send += every
                await asyncio.sleep(max(0.0, next_send - time.perf_counter()))
                await self._app.bench.kiq(payload(time.time()))

        self._loop.run_until_complete(steadily())

    def worker_commands(self, processes: int) -> list[list[str]]:
        taskiq = str(Path(sys.executable).with_name("taskiq"))
        return [
            [
                taskiq, "worker", "benchmarks.apps.taskiq_app:broker", "--workers", str(processes),
                "--max-async-tasks", "100", "--max-prefetch", "100", "--ack-type", "when_executed",
                "--log-level", "WARNING",
            ]
        ]  # fmt: skip

    def close(self) -> None:
        self._loop.run_until_complete(self._app.broker.shutdown())
        self._loop.close()
