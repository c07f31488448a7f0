"""huey on SQLite. It is at most once: a job that runs is gone from the queue already."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.systems import System


class HueySqlite(System):
    """huey with `SqliteHuey`."""

    name = "huey, SQLite (at most once)"

    def __init__(self, folder: Path, *, server_url: str = "") -> None:
        super().__init__(folder, server_url=server_url)
        os.environ |= self.environment()
        sys.modules.pop("benchmarks.apps.huey_app", None)
        self._app = import_module("benchmarks.apps.huey_app")

    def environment(self) -> dict[str, str]:
        return {"BENCH_HUEY_FILE": str(self.folder / "huey.db")}

    def send(self, job: dict[str, Any]) -> None:
        self._app.bench(job)

    def send_many(self, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            self._app.bench(job)

    def waiting(self) -> int:
        return int(self._app.huey.pending_count())

    def worker_command(self, processes: int) -> list[str]:
        if processes != 1:
            raise NotImplementedError("huey's threads live in one process")
        consumer = str(Path(sys.executable).with_name("huey_consumer"))
        return [
            consumer, "benchmarks.apps.huey_app.huey", "-q", "-k", "thread", "-w", str(self.threads),
            "-d", "0.01", "-m", "0.05",
        ]  # fmt: skip
