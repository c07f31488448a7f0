"""The runners of one worker process.

There are no more of them than threads that run isolated jobs at once, for each thread takes one and puts it back. One
thread of the pool starts the nursery, hears how runners end, and lives as long as the pool: the kernel takes the
death of the thread that started a process for the death of its parent.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from callboard.errors import IsolatedJobDied
from callboard.loggers import get_logger
from callboard.logs import LogOptions, log_options
from callboard.metrics.runners import RunnerPlaces
from callboard.worker.isolation import nursery
from callboard.worker.isolation.nursery import (
    Ended,
    Fork,
    Forked,
    FromNursery,
    Kill,
    Refused,
    Start,
    ToNursery,
)

log = get_logger(__name__)

#: Seconds that the nursery has to load the application and fork.
_START_SECONDS = 60.0
#: Seconds that idle runners have to end by themselves.
_CLOSE_SECONDS = 1.0
#: A runner that has grown so much is replaced: bytes.
_GROWTH = 256 * 1024 * 1024
_MAX_DUMP = 16_000

_decode = msgspec.json.Decoder(FromNursery).decode
_encode = msgspec.json.Encoder().encode


class RunnerHandle:
    """The worker's side of a runner.

    Attributes:
        connection: To it.
        pid: Of the process; 0 before it is there.
        jobs: How many it has run.
        exit_code: Of its end, or a signal below zero; None where nobody knows.
        known: Set when it is there, or has ended.
        ended: Set when it has ended.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        dump: int,
        tell: Callable[[ToNursery], None],
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self.connection = connection
        self.pid = 0
        self.jobs = 0
        self.exit_code: int | None = None
        self.known = threading.Event()
        self.ended = threading.Event()
        self._dump = dump
        self._tell = tell
        self._leave = leave
        self._ending = threading.Lock()
        self._first_memory = 0

    def memory(self) -> int:
        """Bytes of memory that it uses; 0 if it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def has_grown(self) -> bool:
        """Whether it keeps far more memory than it did after its first job."""
        memory = self.memory()
        self._first_memory = self._first_memory or memory
        return memory > self._first_memory + _GROWTH

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it, and what it has started, a signal."""
        self._tell(Kill(self.number, number))

    def dumped(self) -> str:
        """The stack that it left when it died of a signal."""
        try:
            return os.pread(self._dump, _MAX_DUMP, 0).decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Let go of it: idle, it then ends by itself."""
        self.connection.close()
        if self._dump >= 0:
            os.close(self._dump)
            self._dump = -1

    def note_end(self, exit_code: int | None) -> None:
        """It has ended. Whoever hears of it first says how."""
        with self._ending:
            if self.ended.is_set():
                return
            self.exit_code = exit_code
            self._leave()
            self.ended.set()
        self.known.set()
        with suppress(OSError):  # a process that the job has left may hold the other end open
            self.connection.shutdown(socket.SHUT_RD)


class Pool:
    """Runners for the isolated jobs of a worker process; the first one starts the nursery.

    Args:
        modules: Those that declare isolated actors.
        places: Where runners keep their metrics, if anybody looks.
    """

    def __init__(self, modules: Iterable[str], places: RunnerPlaces | None = None) -> None:
        self._modules = sorted(set(modules))
        self._places = places
        self._lock = threading.Lock()
        self._idle: list[RunnerHandle] = []
        self._all: dict[int, RunnerHandle] = {}
        self._numbers = count(1)
        self._control: socket.socket | None = None
        self._refusal = ""
        self._closed = False

    def take(self, *, max_jobs: int) -> RunnerHandle:
        """A runner that has run fewer than so many jobs. It belongs to the caller until `put_back` or `end`.

        Raises:
            IsolatedJobDied: If none can be started; the message says why.
        """
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index].jobs < max_jobs:
                    runner = self._idle.pop(index)
                    if not runner.ended.is_set():
                        return runner
                    runner.close()
            if self._idle:
                # It has run too many jobs for this one, and would be one more than there are threads.
                self._idle.pop(0).close()
        place = None if self._places is None else self._places.take()  # it may wait for others to end
        with self._lock:
            runner = self._fork(place)
        if not runner.known.wait(_START_SECONDS) or runner.ended.is_set():
            self.end(runner)
            raise IsolatedJobDied(
                f"no process could be started for it: {self._refusal or 'the log says more'}"
            )
        return runner

    def put_back(self, runner: RunnerHandle, *, max_jobs: int) -> None:
        """It is idle again."""
        if runner.jobs < max_jobs and not runner.has_grown() and not runner.ended.is_set():
            with self._lock:
                if not self._closed:
                    self._idle.append(runner)
                    return
        runner.close()

    def end(self, runner: RunnerHandle) -> None:
        """Kill it, and let go of it."""
        if not runner.ended.is_set():
            runner.kill()
        runner.close()

    def close(self) -> None:
        """End all runners, and the nursery."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            others = list(self._all.values())
        for runner in idle:
            runner.close()
        end = time.monotonic() + _CLOSE_SECONDS
        for runner in others:
            runner.ended.wait(max(0.0, end - time.monotonic()))
        with self._lock:
            if self._control is not None:
                with suppress(OSError):
                    self._control.shutdown(socket.SHUT_RDWR)

    # -- the nursery -------------------------------------------------------------------------------------

    def _fork(self, place: int | None) -> RunnerHandle:
        if self._control is None:
            self._refusal = ""
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            threading.Thread(
                target=self._nurse, args=(self._control, theirs), name="callboard-isolation", daemon=True
            ).start()
        ours, its = socket.socketpair()
        dump = os.memfd_create("callboard-stack")
        files, leave = [its.fileno(), dump], partial(self._leave, place)
        if self._places is not None and place is not None:
            files.append(self._places.file)
        runner = RunnerHandle(next(self._numbers), ours, dump, self._tell, leave)
        self._all[runner.number] = runner
        with its:
            try:
                socket.send_fds(self._control, [_encode(Fork(runner.number, place))], files)
            except OSError:
                runner.note_end(None)
        return runner

    def _leave(self, place: int | None) -> None:
        if self._places is not None and place is not None:
            self._places.leave(place)

    def _tell(self, order: ToNursery) -> None:
        control = self._control
        if control is not None:
            with suppress(OSError):  # it is gone, and all runners with it
                control.send(_encode(order))

    def _nurse(self, control: socket.socket, theirs: socket.socket) -> None:
        """The nursery's life, seen from here."""
        options = log_options() or LogOptions(level=_log_level())
        start = Start(
            worker=os.getpid(),
            control=theirs.fileno(),
            path=sys.path,
            modules=self._modules,
            log_level=options.level,
            log_style=options.style,
            log_successes=options.successes,
            shares=self._places is not None,
        )
        try:
            process = subprocess.Popen(  # noqa: S603  ourselves
                nursery.command(start), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        except OSError as error:
            self._refusal = f"{type(error).__name__}: {error}"
            theirs.close()
        else:
            theirs.close()
            self._listen(control)
            process.wait()
        with self._lock:
            self._control = None
            control.close()
            gone, self._all = self._all, {}
        for runner in gone.values():
            runner.note_end(None)

    def _listen(self, control: socket.socket) -> None:
        while True:
            try:
                data = control.recv(nursery.MAX_REPORT)
            except OSError:
                return
            if not data:
                return
            report = _decode(data)
            if isinstance(report, Refused):
                self._refusal = report.reason
                log.error("the application can't be loaded for isolated jobs", reason=report.reason)
                continue
            with self._lock:
                runner = self._all.get(report.number)
                if isinstance(report, Ended):
                    self._all.pop(report.number, None)
            if runner is None:
                continue
            if isinstance(report, Forked):
                runner.pid = report.pid
                runner.known.set()
            else:
                runner.note_end(report.status)


def _log_level() -> str:
    """How much this process logs, where nobody has called `configure_logging`."""
    return logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower()
