"""The ledger: ids whose send returned, minus ids that ran, is nothing; and nothing runs twice at once.

Two producers send 10,000 jobs to a worker of three processes, and twenty times one of the five is killed
with signal 9 at a random moment. The seed is printed; `LEDGER_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from callboard.brokers.file import FileDriver
from callboard.servers import PrivateRedis

JOBS, KILLS = 10_000, 20
_CALLBOARD = str(Path(sys.executable).with_name("callboard"))
_ROOT = Path(__file__).parents[2]


@dataclass
class Ledger:
    """What the processes of one run have noted."""

    folder: Path
    killed: dict[int, float] = field(default_factory=dict)  # pid -> monotonic time

    def sent(self) -> set[str]:
        return {line for path in self.folder.glob("sent-*") for line in path.read_text().splitlines()}

    def runs(self) -> dict[str, list[tuple[float, float, int]]]:
        """For each job its runs: start, end, process. A killed process's run ends with it."""
        runs: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        open_runs: dict[tuple[str, int], float] = {}
        path = self.folder / "runs"
        for line in path.read_text().splitlines() if path.exists() else ():
            event, job_id, process, moment, _attempt = line.split()
            pid = int(process)
            if event == "start":
                open_runs[job_id, pid] = float(moment)
            else:
                runs[job_id].append((open_runs.pop((job_id, pid)), float(moment), pid))
        for (job_id, pid), start in open_runs.items():
            runs[job_id].append((start, self.killed.get(pid, float("inf")), pid))
        return runs

    def working_pids(self) -> list[int]:
        """The processes that ran something lately and still live."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines()[-200:] if path.exists() else []
        pids = {int(line.split()[2]) for line in lines}
        return sorted(pid for pid in pids - self.killed.keys() if Path(f"/proc/{pid}").exists())


@dataclass
class Processes:
    """Two producers and a worker of three processes."""

    environment: dict[str, str]
    ledger: Ledger
    producers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        options = ["--queues", "ledger.*", "--processes", "3", "--threads", "4"]
        command = [_CALLBOARD, "--module", "tests.faults.ledger_app", "worker", *options]
        self.worker = self._start(command, "worker.log")

    def start_producer(self, name: str) -> None:
        command = [sys.executable, "-m", "tests.faults.ledger_app", name, str(JOBS // 2)]
        self.producers[name] = self._start(command, "producers.log")

    def _start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.ledger.folder / log).open("ab") as out:
            return subprocess.Popen(command, cwd=_ROOT, env=self.environment, stderr=out)

    def revive_producers(self) -> None:
        for name, process in list(self.producers.items()):
            if process.poll() == -signal.SIGKILL:
                self.start_producer(name)

    def kill_one(self, chance: random.Random) -> None:
        """Kill -9 one worker process or producer that lives."""
        producing = [p.pid for p in self.producers.values() if p.poll() is None]
        pid = chance.choice(self.ledger.working_pids() * 2 + producing)
        self.ledger.killed[pid] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for process in self.producers.values():
            process.kill()
            process.wait()
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(60)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "LEDGER_FOLDER": str(tmp_path),
        "CALLBOARD_STORE_URL": f"file:{tmp_path}",
        "CALLBOARD_ONE_HOST": "1",
        "CALLBOARD_SEND_DEADLINE": "20",
        "CALLBOARD_LOG_LEVEL": "warning",
    }


@pytest.fixture
def processes(environment: dict[str, str], tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(environment, Ledger(tmp_path))
    yield processes
    processes.stop()


def _until(reached: Callable[[], bool], *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"{what} took over {seconds:.0f} s"
        time.sleep(0.05)


def _run_with_kills(processes: Processes) -> None:
    """Send and run all the jobs, killing on the way; check the ledger."""
    ledger = processes.ledger
    seed = int(os.environ.get("LEDGER_SEED", time.time_ns() % 1_000_000))
    print(f"LEDGER_SEED={seed}")
    chance = random.Random(seed)
    processes.start_worker()
    for name in ("a", "b"):
        processes.start_producer(name)
    _until(lambda: len(ledger.working_pids()) >= 2, seconds=60, what="the start")
    # The kills are spread over the work, not over time: the machine may be slow.
    marks = sorted(chance.randrange(JOBS * 9 // 10) for _ in range(KILLS))
    end = time.monotonic() + 480
    while marks or any(p.poll() != 0 for p in processes.producers.values()):
        assert time.monotonic() < end, f"still {len(marks)} kills to go after 480 s"
        processes.revive_producers()
        if marks and len(ledger.sent()) >= marks[0] and ledger.working_pids():
            processes.kill_one(chance)
            del marks[0]
        time.sleep(0.02)
    _until(lambda: not ledger.sent() - ledger.runs().keys(), seconds=120, what="the backlog")
    _check(ledger)


def _check(ledger: Ledger) -> None:
    sent, runs = ledger.sent(), ledger.runs()
    again = {job_id: found for job_id, found in runs.items() if len(found) > 1}
    at_once = [
        (job_id, first, second)
        for job_id, found in again.items()
        for first, second in zip(sorted(found), sorted(found)[1:], strict=False)
        if second[0] < first[1]
    ]
    print(f"sent {len(sent)}, ran {len(runs)}, ran again {len(again)}, killed {len(ledger.killed)}")
    assert len(sent) >= JOBS
    assert sent - runs.keys() == set()
    assert at_once == []
    # Each kill can make what its process held run again: what ran on four threads, and what was
    # finished but not yet acked.
    assert len(again) <= KILLS * 50
    assert len(ledger.killed) == KILLS


def test_nothing_is_lost_or_run_twice_at_once_on_the_embedded_queue(
    processes: Processes, tmp_path: Path
) -> None:
    processes.environment["CALLBOARD_BROKER_URL"] = f"file:{tmp_path}"
    _run_with_kills(processes)
    processes.stop()
    (path,) = tmp_path.glob("queue.db")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    driver = FileDriver(tmp_path)
    try:
        counts = driver.counts([f"ledger.{word}" for word in ("critical", "high", "medium", "low")])
        assert sum(c.ready + c.claimed for c in counts.values()) == 0
    finally:
        driver.close()


def test_nothing_is_lost_or_run_twice_at_once_on_rabbitmq(processes: Processes, amqp_url: str) -> None:
    processes.environment["CALLBOARD_BROKER_URL"] = amqp_url
    _run_with_kills(processes)


def test_nothing_is_lost_or_run_twice_at_once_on_redis(processes: Processes, own_redis: PrivateRedis) -> None:
    processes.environment["CALLBOARD_BROKER_URL"] = own_redis.url
    _run_with_kills(processes)
