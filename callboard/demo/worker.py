"""The worker of the demo: `callboard worker` as a command, watched through what it logs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from callboard.demo.failures import DemoNotPossible

PROCESSES, THREADS = 2, 4
_GRACE = 5
_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A worker process that died: which jobs it ran, as its supervisor saw it."""

    pid: int
    running: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A worker process that took another's place.

    Attributes:
        pid: Its own.
        replaces: The one before it.
        at: When it was ready, in seconds since the epoch.
    """

    pid: int
    replaces: int
    at: float


class WorkerProcesses:
    """Two processes that run jobs, under their supervisor, and all of them end with us.

    Attributes:
        pids: The processes that run jobs now.
        deaths: Those that died, by their pid.
        replacements: Those that took their places, by the pid of the dead one.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._environment = {**environment, "CALLBOARD_LOG_FORMAT": "json", "CALLBOARD_LOG_LEVEL": "info"}
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self.pids: list[int] = []
        self.deaths: dict[int, Death] = {}
        self.replacements: dict[int, Replacement] = {}

    def start(self) -> None:
        """Start them; `pids` are known a moment later."""
        command = [sys.executable, "-m", "callboard.cli", "worker"]
        options = {"--processes": PROCESSES, "--threads": THREADS, "--grace": _GRACE}
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for us, and we stop it in good order.
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [*_dying_with_us(), *command, *(str(part) for pair in options.items() for part in pair)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self) -> None:
        """Read what has been logged since the last look.

        Raises:
            DemoNotPossible: The worker has ended by itself.
        """
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # it is still being written
                self._read += len(line)
                with suppress(ValueError):
                    self._take(json.loads(line))
        if self._process is not None and (code := self._process.poll()) is not None:
            last = self._log.read_text(errors="replace").splitlines()[-10:]
            raise DemoNotPossible(f"the worker ended with exit code {code}; it said:\n" + "\n".join(last))

    def kill(self, pid: int) -> None:
        """kill -9 one of the processes."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Have it stop in good order, or else at once. Twice is fine."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take(self, entry: dict[str, Any]) -> None:
        event, pid = entry.get("event", ""), entry.get("pid", 0)
        if event == "worker process started":
            self.pids.append(pid)
        elif event.startswith("worker process died"):
            self.deaths[pid] = Death(pid=pid, running=tuple(entry["running"]))
            with suppress(ValueError):
                self.pids.remove(pid)
        elif event == "worker process replaced":
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            self.replacements[entry["replaces"]] = Replacement(pid=pid, replaces=entry["replaces"], at=at)
            self.pids.append(pid)


def _dying_with_us() -> list[str]:
    """A prefix that has Linux kill a command when we are gone, however that came about."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []
