"""BullMQ on Redis: producers and workers are Node's, in `benchmarks/bullmq`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.job import payload
from benchmarks.systems import Job, System

HERE = Path(__file__).resolve().parent.parent / "bullmq"


class BullmqRedis(System):
    """Each way of sending is a Node process that takes the time itself."""

    name = "BullMQ, Redis (Node)"
    how = (
        "Node, one process with 100 jobs at once, `appendfsync everysec`, finished jobs removed; its bulk is "
        "`addBulk` of a thousand."
    )
    server = "redis"
    pace = 13_000
    bulk = True

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("node") is None:
            return "BullMQ isn't measured: Node isn't installed (on Debian: sudo apt-get install nodejs npm)."
        if not (HERE / "node_modules" / "bullmq").exists():
            return "BullMQ isn't measured: `npm install` in benchmarks/bullmq hasn't been run, as make bench does."
        return None

    def send(self, job: Job) -> None:
        self._produce(job, "one", 1)

    def fill(self, jobs: Sequence[Job]) -> None:
        self._produce(jobs[0], "fill", len(jobs))

    def fill_later(self, count: int, seconds: float) -> None:
        self._produce(payload(), "later", count, seconds)

    def seconds_to_send(self, count: int) -> float:
        return self._produce(payload(), "one", count)

    def seconds_to_send_many(self, count: int) -> float:
        return self._produce(payload(), "many", count)

    def send_steadily(self, count: int, *, every: float) -> None:
        self._produce(payload(), "steady", count, every)

    def _produce(self, job: Job, how: str, count: int, seconds: float = 0.0) -> float:
        command = ["node", "producer.js", self.server_url, json.dumps(job), how, str(count), str(seconds)]
        done = subprocess.run(command, cwd=HERE, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"BullMQ's producer failed: {done.stderr[-2000:]}")
        return float(done.stdout)

    def worker_commands(self, processes: int) -> list[list[str]]:
        worker = str(HERE / "worker.js")
        return [["node", worker, self.server_url, str(processes), "100", str(self.queues)]]
