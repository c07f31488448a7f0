"""huey on SQLite. It is at most once: a job that runs is gone from the queue already."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.job import payload
from benchmarks.systems import Job, System


class HueySqlite(System):
    """huey with `SqliteHuey`."""

    name = "huey, SQLite (at most once)"
    how = (
        "`SqliteHuey` at its defaults (WAL, `synchronous=FULL`), eight threads of one process, "
        "polling every 10 to 50 ms."
    )
    pace = 3_500
    most_processes = 1

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        super().__init__(folder, server_url=server_url, queues=queues)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.huey_app", None)
        self._app = import_module("benchmarks.apps.huey_app")

    def environment(self) -> dict[str, str]:
        return {"BENCH_HUEY_FILE": str(self.folder / "huey.db")}

    def send(self, job: Job) -> None:
        self._app.bench(job)

    def fill_later(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self._app.bench.schedule(args=(payload(time.time() + seconds),), delay=seconds)

    def worker_commands(self, processes: int) -> list[list[str]]:
        if processes > self.most_processes:
            raise NotImplementedError("huey's threads live in one process")
        consumer = str(Path(sys.executable).with_name("huey_consumer"))
        return [
            [
                consumer, "benchmarks.apps.huey_app.huey", "-q", "-k", "thread", "-w", str(self.threads),
                "-d", "0.01", "-m", "0.05",
            ]
        ]  # fmt: skip
