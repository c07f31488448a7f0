"""The process that loads the application once, and forks every worker process from there.

So a worker process that died is replaced within milliseconds, however long the application takes to load,
and the processes share its memory. The zygote itself runs no jobs and starts no threads. Each process that
it forks becomes the supervisor's own child, since the one between ends at once and the supervisor adopts
orphans (Linux only).

An application that starts threads or opens connections when it is imported can't be forked safely. The
zygote notices, and then each worker process is forked from the supervisor, which has loaded nothing, and
loads the application by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from callboard.brokers.base import Broker
from callboard.errors import BrokerUnavailable, StoreUnavailable
from callboard.queues import Priority
from callboard.worker.child import ORPHANED_SECONDS, Plan, run_child
from callboard.worker.cut_runs import CutRun, CutRunMemory, correct_records, remember
from callboard.worker.leases import needs_leases
from callboard.worker.patterns import select_queues
from callboard.worker.reports import Report, report_of

_PR_SET_CHILD_SUBREAPER = 36
#: An order to the zygote: a block of slots, what to run, the pid of a dead process.
_COMMAND = struct.Struct("<BBI")
_WORKER, _BURIAL, _RESERVED = 255, 254, 245
#: Seconds that orphans have beyond those that they take for themselves.
_MOMENT = 1.0
_NOT_LINUX = "orphans can't be adopted on this system"


class Zygote:
    """The supervisor's handle on it.

    Args:
        plan: What it loads, and what its children run.
        forget: Called in the new process, to close what is the supervisor's own.

    Attributes:
        pid: Of the process.
    """

    def __init__(self, plan: Plan, *, forget: Callable[[], None]) -> None:
        commands, self._commands = os.pipe()

        def main() -> None:
            forget()
            self.close()
            run_zygote(plan, commands)

        self.pid = fork(main)
        os.close(commands)

    def fork(self, block: int, companion: int) -> None:
        """Ask for a process. It tells of itself by the plan's reports.

        Args:
            block: Which slots it gets.
            companion: What it runs; see `number_of`.

        Raises:
            OSError: If the zygote is gone.
        """
        os.write(self._commands, _COMMAND.pack(block, companion, 0))

    def bury(self, pid: int) -> None:
        """Ask that a dead worker process' sign of life be removed, see `bury`.

        Raises:
            OSError: If the zygote is gone.
        """
        os.write(self._commands, _COMMAND.pack(0, _BURIAL, pid))

    def end(self) -> None:
        """End it. It holds nothing, so it needn't be asked."""
        self.close()
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close our end of the pipe."""
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1


def fork(main: Callable[[], object]) -> int:
    """Fork a process that runs a function and ends with it; returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            main()
            code = 0
        except BaseException:  # noqa: BLE001  there is nobody above who could take it
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _fork_apart(main: Callable[[], object]) -> None:
    """Fork a process that isn't ours: the one between ends at once, and the supervisor adopts it."""
    between = fork(lambda: fork(main))
    if os.waitstatus_to_exitcode(os.waitpid(between, 0)[1]):
        raise OSError("no process can be forked")


def adopt_orphans() -> bool:
    """Become the parent of whatever the descendants of this process leave behind. False where that can't be."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def run_zygote(plan: Plan, commands: int) -> NoReturn:
    """Its main function: load, report, fork on command, end when the supervisor closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    open_before = open_files()
    try:
        broker = plan.load()
        queues = select_queues(broker.queues, plan.patterns)
    except (Exception, SystemExit) as error:  # noqa: BLE001  told to the supervisor
        plan.reports.send(report_of(error, "refused"))
        os._exit(0)
    hazard = hazard_of(open_before)
    plan.reports.send(
        Report("loaded", os.getpid(), queues=queues, hazard=hazard, leases=needs_leases(broker))
    )
    if hazard:
        os._exit(0)
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise touch, and so copy, the memory that they share
    companions = list(plan.companions)
    while len(command := os.read(commands, _COMMAND.size)) == _COMMAND.size:
        block, index, dead = _COMMAND.unpack(command)
        companion = companions[index] if index < len(companions) else None

        def main() -> None:
            os.close(commands)
            if index == _BURIAL:  # noqa: B023  it runs at once
                bury(broker, dead, plan.deaths)  # noqa: B023  it runs at once
                return
            reserved = _reserved_by(index)  # noqa: B023  it runs at once
            run_child(plan, block=block, companion=companion, reserved=reserved, broker=broker)  # noqa: B023  it runs at once

        try:
            _fork_apart(main)
        except OSError as error:
            if index != _BURIAL:
                plan.reports.send(report_of(error, "failed", block))
    _end_orphans(plan)
    os._exit(0)


def _end_orphans(plan: Plan) -> None:
    """The supervisor is gone. Its processes have a moment to stop by themselves, which one whose job keeps Python's
    lock can't do: it would run on, while others get what it had claimed."""
    time.sleep(ORPHANED_SECONDS + _MOMENT)
    for pid in plan.slots.pids():
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == os.getpgrp():  # no stranger that has got its number since
                os.kill(pid, signal.SIGKILL)


def bury(broker: Broker, pid: int, deaths: CutRunMemory) -> None:
    """Have others take over what a worker process of this machine held that has died, and remove its sign of life.
    For a process of its own."""
    owner = f"{socket.gethostname()}:{pid}:"
    _write_deaths(broker, deaths.of_worker(owner.rstrip(":")))  # before anybody gets what it ran
    with suppress(BrokerUnavailable):  # then others notice later
        broker.driver.bury(owner)
    if broker.store is None:
        return
    try:
        for heartbeat in broker.store.workers():
            if heartbeat.worker.startswith(owner):
                broker.store.stopped(heartbeat.worker)
        broker.store.close()
    except StoreUnavailable:  # then it is stale within seconds
        return


def _write_deaths(broker: Broker, runs: list[CutRun]) -> None:
    if broker.store is not None:
        with suppress(StoreUnavailable, BrokerUnavailable):  # then this worker alone knows of them
            remember(broker.store, runs)
            correct_records(broker, runs)


def open_files() -> set[int]:
    folder = Path("/proc/self/fd")
    return {int(entry.name) for entry in folder.iterdir()} if folder.exists() else set()


def hazard_of(open_before: set[int]) -> str:
    """Why a process that has loaded the application mustn't be forked; empty if it may."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        return _NOT_LINUX
    if (threads := len(list(tasks.iterdir())) - 1) > 0:
        return f"the application starts threads when it is imported ({threads})"
    for number in sorted(open_files() - open_before):
        try:
            mode = os.fstat(number).st_mode
            writes = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        except OSError:  # the listing's own
            continue
        if not stat.S_ISCHR(mode) and (writes or stat.S_ISSOCK(mode)):
            return f"the application opens {_target(number)} when it is imported"
    return ""


def _target(number: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return f"file {number}"


def number_of(companions: Sequence[str], companion: str | None, reserved: Priority | None) -> int:
    """How it is told in a command what a process runs: a companion, a worker, or one for urgent jobs alone."""
    if reserved is not None:
        return _RESERVED + reserved
    return _WORKER if companion is None else companions.index(companion)


def _reserved_by(number: int) -> Priority | None:
    """The least urgent jobs that a process runs, where a command says so."""
    return Priority(number - _RESERVED) if _RESERVED < number < _BURIAL else None
