"""The ledger: ids whose send returned, minus ids that ran, is nothing; and nothing runs twice at once.

Producers send, a worker of several processes runs, each notes what it does, and meanwhile a test does its worst.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.lines import whole_lines

_CALLBOARD = str(Path(sys.executable).with_name("callboard"))
_COMMAND = [_CALLBOARD, "--module", "tests.faults.ledger_app"]
_ROOT = Path(__file__).parents[2]

#: A run: its start and end by the monotonic clock, and its process.
Run = tuple[float, float, int]


def until(reached: Callable[[], object], *, seconds: float, what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"{what} took over {seconds:.0f} s"
        time.sleep(0.05)


@dataclass
class Ledger:
    """What the processes of one run have noted."""

    folder: Path
    killed: dict[int, float] = field(default_factory=dict)  # pid -> monotonic time

    def sent(self) -> dict[str, float]:
        """When each send returned, by the monotonic clock."""
        lines = (line for path in self.folder.glob("sent-*") for line in whole_lines(path))
        return {job_id: float(moment) for job_id, moment in map(str.split, lines)}

    def raised(self) -> int:
        """How many sends raised."""
        return sum(len(whole_lines(path)) for path in self.folder.glob("raised-*"))

    def runs(self) -> dict[str, list[Run]]:
        """The runs of each job. A killed process's run ends with it."""
        runs: dict[str, list[Run]] = defaultdict(list)
        open_runs: dict[tuple[str, int], list[float]] = defaultdict(list)  # more than one, if at once
        worker_of: dict[int, int] = {}
        path = self.folder / "runs"
        for line in whole_lines(path):
            event, job_id, process, moment, _attempt, *worker = line.split()
            pid = int(process)
            worker_of[pid] = int(worker[0]) if worker else pid
            if event == "start":
                open_runs[job_id, pid].append(float(moment))
            else:
                runs[job_id].append((open_runs[job_id, pid].pop(0), float(moment), pid))
        for (job_id, pid), starts in open_runs.items():
            end = self._end_of(pid, worker_of[pid])
            runs[job_id] += [(start, start if end is None else end, pid) for start in starts]
        return runs

    def _end_of(self, pid: int, worker: int) -> float | None:
        """Until when a process that hasn't noted a run's end ran it. None if nobody knows: it was an isolated job's,
        and its worker, which stopped, or the kernel, when that had ended, has killed it."""
        if pid in self.killed or worker in self.killed:
            return min(self.killed.get(pid, float("inf")), self.killed.get(worker, float("inf")))
        return None if pid != worker and not Path(f"/proc/{pid}").exists() else float("inf")

    def ended(self) -> set[str]:
        """Jobs of which a run came to its end."""
        path = self.folder / "runs"
        lines = whole_lines(path)
        return {line.split()[1] for line in lines if line.startswith("end ")}

    def lost(self) -> set[str]:
        """Jobs whose send returned and of which no run has ended."""
        return self.sent().keys() - self.ended()

    def again(self) -> dict[str, list[Run]]:
        """The runs of the jobs that ran more than once, in their order."""
        return {job_id: sorted(found) for job_id, found in self.runs().items() if len(found) > 1}

    def at_once(self) -> list[tuple[str, Run, Run]]:
        """The pairs of a job's runs that overlap."""
        return [
            (job_id, first, second)
            for job_id, found in self.again().items()
            for first, second in itertools.pairwise(found)
            if second[0] < first[1]
        ]

    def working_pids(self) -> list[int]:
        """The worker processes that ran something lately and still live."""
        return self._living(words[5] for words in self._last_notes())

    def isolated_pids(self) -> list[int]:
        """The processes of isolated jobs that ran something lately and still live."""
        return self._living(words[2] for words in self._last_notes() if words[2] != words[5])

    def _last_notes(self) -> list[list[str]]:
        path = self.folder / "runs"
        return [line.split() for line in whole_lines(path)[-200:]]

    def _living(self, pids: Iterable[str]) -> list[int]:
        found = set(map(int, pids)) - self.killed.keys()
        return sorted(pid for pid in found if Path(f"/proc/{pid}").exists())

    def kill(self, pid: int) -> None:
        """Kill -9 a process, and know when."""
        self.killed[pid] = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def __str__(self) -> str:
        return (
            f"sent {len(self.sent())}, sends that raised {self.raised()}, ran {len(self.runs())}, ran again "
            f"{len(self.again())}, lost {len(self.lost())}, killed {len(self.killed)}"
        )


def environment_in(folder: Path, **more: str) -> dict[str, str]:
    """The environment of producers and workers whose ledger is kept in a folder."""
    return os.environ | {
        "LEDGER_FOLDER": str(folder),
        "CALLBOARD_STORE_URL": f"file:{folder}",
        "CALLBOARD_ONE_HOST": "1",
        "CALLBOARD_SEND_DEADLINE": "20",
        "CALLBOARD_LOG_LEVEL": "warning",
        **more,
    }


@dataclass
class Processes:
    """Producers, a worker of three processes, and schedulers, if there are any."""

    environment: dict[str, str]
    ledger: Ledger
    producers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    worker: subprocess.Popen[bytes] | None = None
    schedulers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _arguments: dict[str, tuple[str, int]] = field(default_factory=dict)

    def start_worker(self, broker_url: str) -> None:
        options = ["--queues", "ledger.*", "--processes", "3", "--threads", "4"]
        self.worker = self._start([*_COMMAND, "worker", *options], broker_url, "worker.log")

    def start_scheduler(self, name: str, broker_url: str) -> None:
        self.schedulers[name] = self._start([*_COMMAND, "scheduler"], broker_url, "schedulers.log")

    def start_producer(self, name: str, broker_url: str, count: int = 0) -> None:
        """Send so many jobs; without a number, some hundred a second until `enough`."""
        self._arguments[name] = broker_url, count
        command = [sys.executable, "-m", "tests.faults.ledger_app", name, str(count)]
        self.producers[name] = self._start(command, broker_url, "producers.log")

    def _start(self, command: list[str], broker_url: str, log: str) -> subprocess.Popen[bytes]:
        environment = self.environment | {"CALLBOARD_BROKER_URL": broker_url}
        with (self.ledger.folder / log).open("ab") as out:
            return subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=out)

    def start_another_worker(self, broker_url: str) -> None:
        """And wait until it runs jobs. The one that there was is left to the caller."""
        before = set(self.ledger.working_pids())
        self.start_worker(broker_url)
        until(lambda: set(self.ledger.working_pids()) - before, seconds=60, what="the new worker")

    def deploy(self, broker_url: str) -> None:
        """Start another worker, end the one that there was by SIGTERM, and wait for that."""
        before = self.worker
        assert before is not None
        self.start_another_worker(broker_url)
        before.terminate()
        assert before.wait(60) == 0, "a worker that is told to end exits with 0"

    def live(self) -> bool:
        """Whether the worker, the producers and the schedulers run."""
        started = [self.worker, *self.producers.values(), *self.schedulers.values()]
        return all(process is not None and process.poll() is None for process in started)

    def revive_producers(self) -> None:
        for name, process in list(self.producers.items()):
            if process.poll() == -signal.SIGKILL:
                self.start_producer(name, *self._arguments[name])

    def kill_one(self, chance: random.Random) -> None:
        """Kill -9 one worker process or producer that lives."""
        producing = [p.pid for p in self.producers.values() if p.poll() is None]
        pid = chance.choice(self.ledger.working_pids() * 2 + producing)
        self.ledger.kill(pid)
        for producer in self.producers.values():
            if producer.pid == pid:
                producer.wait()

    def enough(self) -> None:
        """Have the producers end, and wait for them."""
        (self.ledger.folder / "enough").touch()
        for process in self.producers.values():
            assert process.wait(60) == 0

    def stop_schedulers(self) -> None:
        """Have them end, as a deploy does."""
        for process in self.schedulers.values():
            process.terminate()
        for process in self.schedulers.values():
            assert process.wait(60) == 0, "a scheduler that is told to end exits with 0"

    def stop(self) -> None:
        for process in (*self.producers.values(), *self.schedulers.values()):
            process.kill()
            process.wait()
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(60)
