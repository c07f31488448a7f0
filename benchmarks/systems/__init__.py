"""The systems that are measured, each behind `System`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.job import payload

_TICK = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"

Job = dict[str, Any]


class System(ABC):
    """One way to send and run the job. Each instance has queues of its own, empty at first.

    Args:
        folder: For its files.
        server_url: A RabbitMQ vhost or a Redis of its own, for those that use one.
        queues: How many queues its worker listens to.
    """

    name: ClassVar[str]
    #: One sentence: how it is set up, so that a reader may judge whether that is fair.
    how: ClassVar[str]
    server: ClassVar[str | None] = None  # 'rabbitmq', 'redis', or none
    threads: ClassVar[int] = 8
    #: About how many jobs one process of it runs a second: so many seconds of work are put into a backlog.
    pace: ClassVar[int]
    #: Whether it has a way to send many at once that is quicker than one by one, and safe when it returns.
    bulk: ClassVar[bool] = False
    most_processes: ClassVar[int] = 2
    #: Whether nothing else of it is worth a measurement.
    only_latency: ClassVar[bool] = False

    def __init__(self, folder: Path, *, server_url: str = "", queues: int = 1) -> None:
        self.folder = folder
        self.server_url = server_url
        self.queues = queues

    @classmethod
    def missing(cls) -> str | None:
        """A sentence that says what it needs and isn't there, or None."""
        return None

    @abstractmethod
    def send(self, job: Job) -> None:
        """Send one job, durably, as the system does by default when nothing may be lost."""

    def send_many(self, jobs: Sequence[Job]) -> None:
        """Send jobs by the quickest way the system has that is safe when it returns."""
        for job in jobs:
            self.send(job)

    def fill(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, in any way that is quick: this isn't measured."""
        self.send_many(jobs)

    def fill_later(self, count: int, seconds: float) -> None:
        """Put in jobs that are due in so many seconds, each with its time in `sent`."""
        raise NotImplementedError(f"{self.name} has no delays")

    def use_all_queues(self, count: int) -> int:
        """Have the worker run jobs of all its queues, and send some if it can; says how many will be counted."""
        self.fill([payload() for _ in range(count)])
        return count

    @abstractmethod
    def worker_commands(self, processes: int) -> list[list[str]]:
        """The commands that run so many processes of eight threads, or of a hundred jobs at once."""

    def environment(self) -> dict[str, str]:
        """What the worker needs beside `BENCH_COUNTER`."""
        return {}

    def close(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of connections."""

    # -- what producers do, for those in another language or on an event loop to do in their own way -------

    def seconds_to_send(self, count: int) -> float:
        """Send jobs one after the other, and say how long that took."""
        for _ in range(50):
            self.send(payload())
        jobs = [payload() for _ in range(count)]
        started = time.perf_counter()
        for job in jobs:
            self.send(job)
        return time.perf_counter() - started

    def seconds_to_send_many(self, count: int) -> float:
        """Send jobs in calls of a thousand, and say how long that took."""
        jobs = [payload() for _ in range(1000)]
        self.send_many(jobs[:50])
        started = time.perf_counter()
        for _ in range(count // 1000):
            self.send_many(jobs)
        return time.perf_counter() - started

    def send_steadily(self, count: int, *, every: float) -> None:
        """Send jobs at an even pace, each with its time in `sent`."""
        next_send = time.perf_counter()
        for _ in range(count):
            next_send += every
            time.sleep(max(0.0, next_send - time.perf_counter()))
            self.send(payload(time.time()))

    @contextmanager
    def working(self, counter: Path, *, processes: int = 1) -> Iterator[Workers]:
        """Run workers inside the block."""
        log = self.folder / "worker.log"
        environment = os.environ | self.environment() | {"BENCH_COUNTER": str(counter)}
        with log.open("ab") as out:
            started = [
                subprocess.Popen(
                    command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
                for command in self.worker_commands(processes)
            ]
        try:
            yield Workers(started, log)
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            for process in started:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Workers:
    """Workers that run now: commands, each of which may have more processes."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
        self._commands = processes
        self._log = log

    def check(self) -> None:
        """Raise if one has ended."""
        for command in self._commands:
            if command.poll() is not None:
                raise RuntimeError(
                    f"the worker ended with {command.returncode}:\n{self._log.read_text()[-3000:]}"
                )

    def cpu_seconds(self) -> float:
        """CPU time used so far by all its processes that are alive."""
        return sum(_cpu(pid) for pid in self._pids())

    def memory_mb(self) -> float:
        """Resident memory of its largest process."""
        return max((_rss(pid) for pid in self._pids()), default=0.0)

    def connections(self, port: int) -> int:
        """The most connections to a server's port that one of its processes has."""
        to_server = _sockets_to(port)
        return max((len(to_server & _sockets_of(pid)) for pid in self._pids()), default=0)

    def _pids(self) -> list[int]:
        sessions = {str(command.pid) for command in self._commands}
        processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in processes if _stat(pid, 3) in sessions]


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


def _sockets_to(port: int) -> set[str]:
    """The inodes of the sockets of this machine that are connected to a port."""
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets_of(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found: set[str] = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def wait_until(
    reached: Callable[[], bool], *, seconds: float, what: str, workers: Workers | None = None
) -> None:
    """Wait for something to become true, looking every 5 ms.

    Raises:
        TimeoutError: after so many seconds.
    """
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} took over {seconds:.0f} s")
        if workers is not None:
            workers.check()
        time.sleep(0.005)
