"""pika alone: not a system, but the floor of the latency of those that use a quorum queue."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import pika

from benchmarks.systems import Job, System, python_module


class PikaRabbitmq(System):
    """A message instead of a job, and one thread that takes it."""

    name = "pika alone, RabbitMQ"
    how = "no system, for the floor of the latency: a quorum queue, each send confirmed, each message acked."
    server = "rabbitmq"
    only_latency = True
    pace = 5_000

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        self._app = import_module("benchmarks.apps.pika_app")
        self._channel = self._app.open_channel()
        self._channel.confirm_delivery()
        self._properties = pika.BasicProperties(delivery_mode=2)

    def environment(self) -> dict[str, str]:
        return {"BENCH_SERVER_URL": self.server_url}

    def send(self, job: Job) -> None:
        body = json.dumps(job).encode()
        self._channel.basic_publish("", self._app.QUEUE, body, self._properties, mandatory=True)

    def worker_commands(self, processes: int) -> list[list[str]]:
        return [python_module("benchmarks.apps.pika_app") for _ in range(processes)]

    def close(self) -> None:
        self._channel.connection.close()
