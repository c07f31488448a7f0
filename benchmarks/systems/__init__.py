"""The systems that are measured, each behind `System`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

_TICK = os.sysconf("SC_CLK_TCK")


class System(ABC):
    """One way to send and run the job. Each instance has a queue of its own, empty at first.

    Args:
        folder: For its files.
        server_url: A RabbitMQ vhost or a Redis of its own, for those that use one.
    """

    name: ClassVar[str]
    server: ClassVar[str | None] = None  # 'rabbitmq', 'redis', or none
    threads: ClassVar[int] = 8

    def __init__(self, folder: Path, *, server_url: str = "") -> None:
        self.folder = folder
        self.server_url = server_url

    @abstractmethod
    def send(self, job: dict[str, Any]) -> None:
        """Send one job, durably, as the system does by default when nothing may be lost."""

    @abstractmethod
    def send_many(self, jobs: list[dict[str, Any]]) -> None:
        """Send jobs by the quickest way the system has that is safe when it returns."""

    @abstractmethod
    def waiting(self) -> int:
        """How many jobs are in the queue, unacknowledged ones included where the system can tell."""

    @abstractmethod
    def worker_command(self, processes: int) -> list[str]:
        """The command that runs a worker with so many processes of eight threads."""

    def environment(self) -> dict[str, str]:
        """What the worker needs beside `BENCH_COUNTER`."""
        return {}

    def close(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of connections."""

    @contextmanager
    def working(self, counter: Path, *, processes: int = 1) -> Iterator[Workers]:
        """Run workers inside the block."""
        log = self.folder / "worker.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.worker_command(processes),
                env=os.environ | self.environment() | {"BENCH_COUNTER": str(counter)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Workers(process, log)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Workers:
    """Workers that run now."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raise if they have ended."""
        if self._process.poll() is not None:
            raise RuntimeError(
                f"the worker ended with {self._process.returncode}:\n{self._log.read_text()[-3000:]}"
            )

    def cpu_seconds(self) -> float:
        """CPU time used so far by all its processes that are alive."""
        return sum(_cpu(pid) for pid in self._pids())

    def memory_mb(self) -> float:
        """Resident memory of its largest process."""
        return max((_rss(pid) for pid in self._pids()), default=0.0)

    def _pids(self) -> list[int]:
        session = self._process.pid
        processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in processes if _stat(pid, 3) == str(session)]


def _stat(pid: int, field: int) -> str:
    """A field of /proc/PID/stat, counted from 0 behind the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    except OSError:
        return ""


def _cpu(pid: int) -> float:
    user, system = _stat(pid, 11), _stat(pid, 12)
    return (int(user) + int(system)) / _TICK if user and system else 0.0


def _rss(pid: int) -> float:
    pages = _stat(pid, 21)
    return int(pages) * os.sysconf("SC_PAGESIZE") / 1e6 if pages else 0.0


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def wait_until(reached: Any, *, seconds: float, what: str, workers: Workers | None = None) -> None:
    """Wait for something to become true, looking every 5 ms."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} took over {seconds:.0f} s")
        if workers is not None:
            workers.check()
        time.sleep(0.005)
