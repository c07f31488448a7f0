"""The nursery: a process beside a worker that loads the application, and forks a runner when it is asked to.

It runs no jobs and has no threads, so a fork of it is safe, takes milliseconds, and shares its memory. It is started
by `python -c`, not forked: a worker has threads. It alone kills runners, for it alone knows when a pid is free again.
When the worker is gone, the nursery kills them all and ends; when the nursery is gone, the kernel kills them.

An application that starts threads or opens connections when it is imported can't be forked safely. Then the nursery
starts itself anew without it, and each runner loads it by itself.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import msgspec

from callboard.errors import text_of
from callboard.logs import configure_logging
from callboard.metrics import runners
from callboard.metrics.values import keep_shareable
from callboard.worker.isolation.runner import die_with, hear_of_death, run_runner
from callboard.worker.zygote import hazard_of, open_files

MAX_REPORT = 65_536


class Start(msgspec.Struct):
    """What a nursery is told when it starts."""

    worker: int
    control: int
    path: list[str]
    modules: list[str]
    log_level: str
    log_style: str
    log_successes: bool
    shares: bool = False  # whether runners keep their metrics where the worker's supervisor sees them
    bare: bool = False


class Fork(msgspec.Struct, tag="fork"):
    """Fork a runner. Files come with it: its connection, where it dumps its stack, and with `place` its metrics'."""

    number: int
    place: int | None = None  # for its metrics


class Kill(msgspec.Struct, tag="kill"):
    """Send a runner, and what it has started, a signal."""

    number: int
    signal: int


class Forked(msgspec.Struct, tag="forked"):
    """There it is."""

    number: int
    pid: int


class Ended(msgspec.Struct, tag="ended"):
    """A runner has ended: with an exit code, or a signal below zero."""

    number: int
    status: int


class Refused(msgspec.Struct, tag="refused"):
    """The application can't be loaded here."""

    reason: str


ToNursery = Fork | Kill
FromNursery = Forked | Ended | Refused

_decode = msgspec.json.Decoder(ToNursery).decode
_encode = msgspec.json.Encoder().encode


def command(start: Start) -> list[str]:
    """How it is started."""
    code = "import sys; from callboard.worker.isolation.nursery import main; main(sys.argv[1])"
    first = f"import json, sys; sys.path[:] = json.loads(sys.argv[2]); {code}"
    return [sys.executable, "-c", first, _encode(start).decode(), _encode(start.path).decode()]


def main(start: str) -> NoReturn:
    """Its main function."""
    told = msgspec.json.decode(start, type=Start)
    die_with(told.worker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the worker says when it is over
    configure_logging(level=told.log_level, style=told.log_style, successes=told.log_successes)
    control = socket.socket(fileno=told.control)
    if told.shares:
        keep_shareable()
    if not told.bare:
        before = open_files()
        try:
            for module in told.modules:
                import_module(module)
        except BaseException as error:  # noqa: BLE001  told to the worker
            control.send(_encode(Refused(f"{type(error).__name__}: {text_of(error)}")))
            os._exit(1)
        if hazard_of(before):
            told.bare = True
            os.set_inheritable(told.control, True)
            arguments = command(told)
            os.execv(arguments[0], arguments)  # noqa: S606  ourselves
    gc.collect()
    gc.freeze()  # a collection in a runner would otherwise touch, and so copy, the memory that they share
    Nursery(control, told.worker).serve()


class Nursery:
    """Forks runners, kills them and buries them.

    Args:
        control: To the worker.
        worker: The worker.
    """

    def __init__(self, control: socket.socket, worker: int) -> None:
        self._control = control
        self._worker = worker
        self._runners: dict[int, int] = {}  # pid -> number
        self._awake, self._waker = os.pipe()
        for end in (self._awake, self._waker):
            os.set_blocking(end, False)

    def serve(self) -> NoReturn:
        """Until the worker closes the connection, or is gone."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Not killed any more when the worker dies, for it has to end what jobs have started.
        hear_of_death(self._worker, signal.SIGCHLD)
        waiting = select.poll()
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._awake, select.POLLIN)
        while True:
            for ready, _ in waiting.poll():
                if ready == self._awake:
                    os.read(self._awake, 512)
                    if os.getppid() != self._worker:
                        self._end()
                elif not self._obey():
                    self._end()
            self._bury()

    def _obey(self) -> bool:
        try:
            data, files, *_ = socket.recv_fds(self._control, MAX_REPORT, 3)
        except OSError:
            return False
        if not data:
            return False
        order = _decode(data)
        if isinstance(order, Fork):
            self._fork(order, *files)
        else:
            for pid, number in self._runners.items():
                if number == order.number:
                    _kill(pid, order.signal)
        return True

    def _fork(self, order: Fork, connection: int, dump: int, metrics: int | None = None) -> None:
        nursery = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                self._control.close()
                os.close(self._awake)
                os.close(self._waker)
                if metrics is not None and order.place is not None:
                    with suppress(OSError):  # then they aren't counted
                        runners.join(metrics, order.place)
                    os.close(metrics)
                run_runner(socket.socket(fileno=connection), dump, nursery)
            finally:
                os._exit(1)
        os.close(connection)
        os.close(dump)
        if metrics is not None:
            os.close(metrics)
        if pid > 0:
            self._runners[pid] = order.number
            self._report(Forked(order.number, pid))
        else:
            self._report(Ended(order.number, 1))

    def _bury(self) -> None:
        """What a dead runner has started ends with it, before its pid is free again."""
        for pid in list(self._runners):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self._report(Ended(self._runners.pop(pid), status))

    def _report(self, report: Any) -> None:
        with suppress(OSError):  # the worker is gone, as the next look will tell
            self._control.send(_encode(report))

    def _end(self) -> NoReturn:
        for pid in self._runners:
            _kill(pid, signal.SIGKILL)
        os._exit(0)


def _kill(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has no group of its own yet
        with suppress(ProcessLookupError):
            os.kill(pid, number)
