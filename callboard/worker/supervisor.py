"""The supervisor: keeps worker processes running, and stops them together.

The life of a worker's processes:

- The application is loaded in a process of its own, the zygote (`callboard.worker.zygote`), which forks the
  worker processes. The supervisor itself imports nothing of the application, runs no threads, and does
  little enough to outlive whatever its children do.
- A process that dies is replaced at once, and the others go on. One that can't even start is tried again
  ever later; if none ever could, the supervisor says why and gives up.
- SIGTERM and SIGINT stop all within the grace, a second one at once: running jobs are interrupted and given
  back. A third kills. SIGHUP loads the application anew and replaces the processes one by one; if it can't be
  loaded, the old ones stay.
- What ran in one that died by itself is noted (`callboard.worker.cut_runs`). It also leaves a sign of life in the
  store: a process that has the application, and with it the store, removes that and writes down the deaths.
- When the supervisor dies, the others see the end of a pipe that only it holds open, and stop. One whose job keeps
  Python's lock sees nothing, and is killed by the zygote.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from callboard import errors
from callboard.brokers.base import Broker
from callboard.errors import AppError, CallboardError
from callboard.loggers import get_logger
from callboard.queues import Priority
from callboard.worker.child import Plan, run_child
from callboard.worker.cut_runs import CutRun, CutRunMemory
from callboard.worker.events import Event
from callboard.worker.leases import Leases, new_owner
from callboard.worker.monitoring import Monitoring, WorkerState, WorkerStates
from callboard.worker.options import WorkerOptions
from callboard.worker.patterns import queues_from, summed_up
from callboard.worker.recycling import LEAST_LIFE
from callboard.worker.reload import Watcher
from callboard.worker.reports import Report, Reports
from callboard.worker.shutdown import FLUSH_SECONDS, INTERRUPT_SECONDS
from callboard.worker.slots import SlotMemory
from callboard.worker.zygote import Zygote, adopt_orphans, bury, fork, number_of

log = get_logger(__name__)

_BEGIN_SECONDS = 10.0  # from the order to fork a process to its first word
_GIVE_UP_AFTER = 3  # failed starts of a process, if none has ever started
_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 10.0
_SHORT_LIFE, _SHORT_LIFE_PAUSE = 2.0, 0.5
_OWN_FOLDER = Path(errors.__file__).resolve().parent
#: What Python says of a name or a module that isn't in the Callboard that runs.
_OWN_IMPORT = re.compile(r"(cannot import name .* from|No module named|module) 'callboard\b")
#: Process managers may signal a process and then its group: within so many seconds that is one order.
_ONE_ORDER = 0.3
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
#: The companion that keeps the leases.
_LEASES = "leases"
_STOP, _QUICK, _KILL = 1, 2, 3
_RECYCLING_SECONDS = 1.0  # between two looks at what processes have done
_OUTDATED = -1  # the load of the application that no process runs
_Replace = Literal["none", "one by one", "all at once"]
_SIGNALS = {_STOP: signal.SIGTERM, _QUICK: signal.SIGQUIT, _KILL: signal.SIGKILL}


def run_supervisor(options: WorkerOptions, *, on_event: Callable[[Event], None] | None = None) -> int:
    """Run worker processes until a signal says stop; returns the exit code: 0, or 1 if none could start.

    For a command's main thread: it takes over the process' signals and its children, and forks, so nothing
    else should run beside it.

    Raises:
        CallboardError: If the application can't be loaded, or a pattern matches no queue.
    """
    return Supervisor(options, on_event).run()


@dataclass(slots=True, eq=False)
class _Process:
    pid: int
    block: int
    seat: _Seat
    app: int  # which load of the application it runs
    begun: float
    ready: float | None = None
    failure: str = ""  # why it couldn't start
    told: int = 0  # to stop, and how urgently
    told_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Seat:
    """The place of one process: who has it, who is to take over, what went wrong."""

    companion: str | None
    reserved: Priority | None = None
    holder: _Process | None = None
    successor: _Process | None = None
    ordered: tuple[int, float] | None = None  # a process that hasn't begun: its block, since when
    not_before: float = 0.0
    failures: int = 0
    short_lives: int = 0
    lost: tuple[int, float] | None = None  # the pid of the one that died here, and when


class Supervisor:
    """See the module's head."""

    def __init__(self, options: WorkerOptions, on_event: Callable[[Event], None] | None = None) -> None:
        self._options = options
        self._on_event = on_event or (lambda event: None)
        self._seats = [_Seat(None) for _ in range(options.processes)]
        self._seats += [_Seat(None, reserved=priority) for priority in options.reserve]
        self._companions = dict(options.companions)
        if options.http is not None:
            self._companions["observer"] = self._observe
        self._seats += [_Seat(name) for name in self._companions]
        self._companions[_LEASES] = self._keep_leases  # it gets its seat if the application needs it
        self._lease_owner = new_owner()
        self._blocks = deque(range(4 * (len(self._seats) + 1)))  # some for those that leave while others come
        self._monitoring: Monitoring | None = None
        self._queues: list[str] = []  # what the application's workers consume
        self._processes: dict[int, _Process] = {}
        self._app = 0  # how often the application has been loaded
        self._replace: _Replace = "none"
        self._zygote: Zygote | None = None
        self._loading: Zygote | None = None
        self._hazard = ""
        self._outdated = False  # Callboard itself was changed since this process started
        self._urgency = 0
        self._next_recycling = 0.0
        self._last_order = 0.0
        self._code = 0
        self._ever_ready = False
        self._last_failure = ""
        self._refusal: CallboardError | None = None

    def run(self) -> int:
        """Run until told to stop; returns the exit code."""
        self._had_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._monitoring = self._open_monitoring()
        self._open()
        try:
            with self._listening():
                self._adopts = adopt_orphans()
                self._load("none")
                while not self._done():
                    self._turn()
        finally:
            self._close()
        if self._refusal is not None:
            raise self._refusal
        log.info("worker stopped")
        return self._code

    def _open_monitoring(self) -> Monitoring | None:
        options = self._options
        if options.http is None:
            return None
        monitoring = Monitoring(
            blocks=len(self._blocks),
            processes=options.processes + len(options.reserve),
            threads=options.threads,
            stalled_after=options.stalled_after,
        )
        monitoring.open(options.http)
        return monitoring

    def _observe(self, broker: Broker, stop: threading.Event) -> None:
        """In a new process: a companion that looks after what all workers share."""
        assert self._monitoring is not None
        self._monitoring.observe(broker, stop)

    def _keep_leases(self, broker: Broker, stop: threading.Event) -> None:
        """In a new process: a companion that keeps the leases of what the workers run."""
        self._leases.run(broker, stop)

    def _open(self) -> None:
        options = self._options
        lifeline, self._lifeline = os.pipe()
        self._reports = Reports()
        self._awake, self._waker = os.pipe()
        for end in (self._awake, self._waker):
            os.set_blocking(end, False)
        self._slots = SlotMemory(len(self._blocks), max(options.threads, *options.reserve.values(), 1))
        self._leases = Leases(self._slots, self._lease_owner)
        self._deaths = CutRunMemory()
        self._watcher = Watcher(options.watch) if options.watch else None
        self._plan = Plan(
            module=options.module,
            modules=options.modules,
            patterns=options.queues,
            threads=options.threads,
            grace=options.grace,
            log_level=options.log_level,
            log_format=options.log_format,
            log_successes=options.log_successes,
            companions=self._companions,
            lease_owner=self._lease_owner,
            reserve=options.reserve,
            reports=self._reports,
            slots=self._slots,
            deaths=self._deaths,
            lifeline=lifeline,
            join=self._monitoring.join if self._monitoring is not None else None,
        )

    def _close(self) -> None:
        for zygote in (self._zygote, self._loading):
            if zygote is not None:
                zygote.end()
                os.waitpid(zygote.pid, 0)
        self._reports.close()
        if self._monitoring is not None:
            self._monitoring.close()
        for end in (self._plan.lifeline, self._lifeline, self._awake, self._waker):
            os.close(end)

    def _forget(self) -> None:
        """In a new process: let go of what is the supervisor's own."""
        signal.set_wakeup_fd(-1)
        self._reports.only_send()
        if self._monitoring is not None:
            self._monitoring.close()
        for end in (self._lifeline, self._awake, self._waker):
            os.close(end)
        for zygote in (self._zygote, self._loading):
            if zygote is not None:
                zygote.close()

    # -- signals -----------------------------------------------------------------------------------------

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Have signals wake the loop; what they ask is done there."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before: dict[signal.Signals, Any] = {
            number: signal.signal(number, lambda *_: None) for number in numbers
        }
        fd_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        # Whoever started this may have kept them until somebody listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*numbers, signal.SIGHUP])
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd_before)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                if time.monotonic() - self._last_order > _ONE_ORDER:
                    self._stop(self._urgency + 1)
            elif number == signal.SIGQUIT:
                self._stop(max(_QUICK, self._urgency))
            elif number == signal.SIGHUP:
                if self._had_terminal and not sys.stderr.isatty():
                    self._stop(max(_STOP, self._urgency))  # the terminal was closed
                else:
                    log.info("restarting the worker processes, one by one")
                    self._load("one by one")

    # -- the loop ----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._fill()
        readable = self._wait([self._awake, self._reports.fileno()])
        if self._awake in readable:
            self._obey(os.read(self._awake, 256))
        self._hear()
        self._reap()
        self._escalate()
        self._look()
        self._recycle()
        if self._watcher is not None and not self._urgency and (changed := self._watcher.changed()):
            self._changed(changed)

    def _wait(self, files: Sequence[int]) -> Sequence[int]:
        if self._monitoring is not None:
            return self._monitoring.wait(files, self._patience())
        readable, _, _ = select.select(files, [], [], self._patience())
        return readable

    def _look(self) -> None:
        """Look whether the processes do their work, and have those replaced that don't."""
        if self._monitoring is None:
            return
        workers = [
            self._state_of(p)
            for p in self._processes.values()
            if p.ready is not None and p.seat.companion is None
        ]
        for pid in self._monitoring.look(WorkerStates(workers, self._queues, stopping=bool(self._urgency))):
            log.error("worker process claims nothing although messages wait, it is replaced", pid=pid)
            self._processes[pid].app = _OUTDATED

    def _recycle(self) -> None:
        """Have processes replaced that have done enough."""
        now = time.monotonic()
        if not self._options.enough or self._urgency or now < self._next_recycling:
            return
        self._next_recycling = now + _RECYCLING_SECONDS
        for process in self._processes.values():
            if process.seat.companion is not None or process.told or process.app != self._app:
                continue
            if process.ready is None or now - process.ready < LEAST_LIFE:
                continue
            jobs = self._slots.of(process.block).ended()
            if (reason := self._options.enough.reason(process.pid, jobs)) is not None:
                log.info("a worker process has done enough, it is replaced", pid=process.pid, reason=reason)
                process.app = _OUTDATED

    def _state_of(self, process: _Process) -> WorkerState:
        running, reserved = self._slots.of(process.block).running(), process.seat.reserved
        return WorkerState(
            process.pid,
            process.block,
            len(running),
            leaving=bool(process.told),
            queues=None if reserved is None else queues_from(self._queues, reserved),
            threads=None if reserved is None else self._options.reserve[reserved],
        )

    def _changed(self, files: Sequence[Path]) -> None:
        """Files were saved: load the application anew. Callboard itself can't be, as this process runs it."""
        log.info("files changed, loading the application anew", files=[str(path) for path in files[:5]])
        if any(path.resolve().is_relative_to(_OWN_FOLDER) for path in files):
            self._outdated = True
            log.warning("Callboard itself has changed, restart callboard dev to run it so")
        self._load("all at once")

    def _patience(self) -> float:
        """Seconds until the loop looks again although nothing wakes it."""
        busy = self._urgency or any(
            seat.ordered or (seat.holder is None and self._app) or seat.successor for seat in self._seats
        )
        if busy:
            return 0.05
        if self._watcher is not None:
            return 0.3
        return _RECYCLING_SECONDS if self._options.enough else 5.0

    def _done(self) -> bool:
        return bool(self._urgency) and not self._processes and not any(seat.ordered for seat in self._seats)

    # -- loading the application ---------------------------------------------------------------------------

    def _load(self, replace: _Replace) -> None:
        """Load the application in a new process, and then replace those that run an older load of it."""
        if self._urgency:
            return
        if self._loading is not None:
            self._loading.end()  # it may have read what has changed again since
        self._replace = replace
        self._loading = Zygote(self._plan, forget=self._forget)

    def _loaded(self, report: Report) -> None:
        if self._loading is None or report.pid != self._loading.pid:
            return
        for priority in self._options.reserve:
            if not queues_from(report.queues, priority):
                refusal = f"a thread is reserved for {priority.word} jobs, and no queue of such is consumed"
                self._refused(errors.UnknownQueue(refusal))
                return
        if self._zygote is not None:
            self._zygote.end()
        self._zygote, self._loading = self._loading, None
        first = self._app == 0
        if first or self._replace != "none":
            self._app += 1
        self._queues = report.queues
        if report.leases and not any(seat.companion == _LEASES for seat in self._seats):
            self._seats.append(_Seat(_LEASES))
        self._hazard = report.hazard or ("" if self._adopts else "orphans can't be adopted here")
        if first:
            log.info(
                "worker started",
                pid=os.getpid(),
                processes=self._options.processes,
                threads=self._options.threads,
                queues=" ".join(self._options.queues or summed_up(report.queues)),
            )
        elif self._replace != "none":
            self._tell(Event(kind="reloaded", pid=self._zygote.pid, at=time.time()))
        if report.hazard:
            log.info("each worker process loads the application by itself", reason=report.hazard)

    def _refused(self, error: CallboardError) -> None:
        """The application can't be loaded: the end of a worker that starts, and no harm to one that runs."""
        if self._app == 0:
            self._refusal = error
            self._stop(_STOP)
        else:
            log.error("the application can't be loaded, the worker goes on as it was", error=str(error))
            if self._outdated or _OWN_IMPORT.search(str(error)):
                command = "callboard dev" if self._watcher is not None else "the worker"
                log.error(f"restart {command}: Callboard itself has changed since it started")

    # -- filling seats -------------------------------------------------------------------------------------

    def _fill(self) -> None:
        if not self._app:
            return
        now = time.monotonic()
        for seat in self._seats:
            if seat.ordered is not None and now - seat.ordered[1] > _BEGIN_SECONDS:
                log.warning("a worker process that was ordered didn't begin")
                self._blocks.append(seat.ordered[0])
                seat.ordered = None
            if not self._urgency and self._wants(seat) and now >= seat.not_before and self._blocks:
                self._order(seat, now)

    def _wants(self, seat: _Seat) -> bool:
        if seat.ordered is not None or seat.successor is not None:
            return False
        if seat.holder is None:
            return True
        if seat.holder.app == self._app or seat.holder.ready is None:
            return False
        leaving = any(process.told for process in self._processes.values())
        coming = any(other.ordered or other.successor for other in self._seats)
        return self._replace == "all at once" or not (leaving or coming)

    def _order(self, seat: _Seat, now: float) -> None:
        block = self._blocks.popleft()
        self._slots.of(block).clear()
        seat.ordered = block, now
        try:
            if self._hazard or self._zygote is None:
                fork(lambda: self._run_child(block, seat))
            else:
                self._zygote.fork(block, number_of(list(self._companions), seat.companion, seat.reserved))
        except OSError as error:
            self._not_begun(block, f"no process can be forked: {error}")

    def _run_child(self, block: int, seat: _Seat) -> NoReturn:
        """In a new process, which loads the application by itself."""
        self._forget()
        run_child(self._plan, block=block, companion=seat.companion, reserved=seat.reserved)

    def _begun(self, report: Report) -> None:
        for seat in self._seats:
            if seat.ordered is not None and seat.ordered[0] == report.block:
                seat.ordered = None
                process = _Process(report.pid, report.block, seat, self._app, time.monotonic())
                self._processes[process.pid] = process
                self._slots.give(process.block, process.pid)
                if seat.holder is None:
                    seat.holder = process
                else:
                    seat.successor = process
                if self._urgency:
                    self._ask(process, self._urgency)
                return
        with suppress(ProcessLookupError):
            os.kill(report.pid, signal.SIGKILL)  # ordered, given up, and late

    def _ready(self, report: Report) -> None:
        process = self._processes.get(report.pid)
        if process is None:
            return
        process.ready = time.monotonic()
        self._ever_ready = True
        seat = process.seat
        seat.failures = 0
        if seat.successor is process:
            predecessor, seat.holder, seat.successor = seat.holder, process, None
            if predecessor is not None:
                self._ask(predecessor, _STOP)
        if seat.lost is not None:
            pid, since = seat.lost
            seat.lost = None
            self._tell(self._event("replaced", process, seconds=process.ready - since, replaces=pid))
        else:
            self._tell(self._event("started", process, seconds=process.ready - process.begun))

    def _stopping(self, report: Report) -> None:
        """A process stops, as it was told to: if not by this one, then by somebody who told all, or it alone."""
        process = self._processes.get(report.pid)
        if process is not None and not process.told:
            log.info("a worker process was told to stop by somebody else", pid=process.pid)
            process.told, process.told_at = _STOP, time.monotonic()

    def _not_begun(self, block: int, text: str) -> None:
        """A process that was ordered isn't there."""
        for seat in self._seats:
            if seat.ordered is not None and seat.ordered[0] == block:
                seat.ordered = None
                self._blocks.append(block)
                self._not_started(seat, text)

    def _not_started(self, seat: _Seat, text: str) -> None:
        """A process couldn't start: its seat waits, ever longer."""
        seat.failures += 1
        wait = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2 ** (seat.failures - 1))
        seat.not_before = time.monotonic() + wait
        if text != self._last_failure:
            self._last_failure = text
            log.error("a worker process can't start", error=text)
        if not self._ever_ready and seat.failures >= _GIVE_UP_AFTER and not self._urgency:
            log.error("no worker process could start, giving up", tries=seat.failures)
            self._code = 1
            self._stop(_STOP)

    # -- hearing and reaping -------------------------------------------------------------------------------

    def _hear(self) -> None:
        for report in self._reports.receive():
            if report.kind == "loaded":
                self._loaded(report)
            elif report.kind == "refused":
                if self._loading is not None and report.pid == self._loading.pid:
                    self._refused(_error_of(report))
            elif report.kind == "begun":
                self._begun(report)
            elif report.kind == "ready":
                self._ready(report)
            elif report.kind == "stopping":
                self._stopping(report)
            elif (process := self._processes.get(report.pid)) is not None:
                process.failure = report.text
            else:
                self._not_begun(report.block, report.text)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._hear()  # whatever it said, it said before it ended
            code = os.waitstatus_to_exitcode(status)
            if (process := self._processes.pop(pid, None)) is not None:
                if self._monitoring is not None:
                    self._monitoring.ended(pid, process.block, died=_is_death(process))
                if _is_death(process):
                    self._note_runs(process, _in_words(code), usage.ru_maxrss * _MAXRSS_UNIT)
                self._ended(process, _in_words(code))
                if _is_death(process) or (code != 0 and process.ready and process.seat.companion is None):
                    self._bury(pid)
            elif self._loading is not None and pid == self._loading.pid:
                self._loading.close()
                self._loading = None
                if code != 0:
                    self._refused(AppError(f"loading the application ended the process: {_in_words(code)}"))
            elif self._zygote is not None and pid == self._zygote.pid:
                self._zygote.close()
                self._zygote = None
                if not self._hazard and not self._urgency:
                    log.warning(
                        "the process that starts the others died, starting another", exit=_in_words(code)
                    )
                    self._load("none")

    def _note_runs(self, process: _Process, exit_: str, peak_memory: int) -> None:
        """Note what a process ran that died by itself: before its slots are empty, so that nobody misses it."""
        runs = self._slots.of(process.block).runs()
        now, worker = time.monotonic(), f"{socket.gethostname()}:{process.pid}"
        self._deaths.add(
            CutRun(job_id, time.time(), worker, exit_, now - started, peak_memory, len(runs) - 1)
            for job_id, started in runs
        )

    def _bury(self, pid: int) -> None:
        """Have the store told of a dead process. If that fails, its sign of life is stale within seconds."""
        with suppress(OSError):
            if self._hazard or self._zygote is None:
                fork(lambda: self._run_burial(pid))
            else:
                self._zygote.bury(pid)

    def _run_burial(self, pid: int) -> None:
        """In a new process, which loads the application by itself."""
        self._forget()
        bury(self._plan.load(), pid, self._deaths)

    def _ended(self, process: _Process, exit_: str) -> None:
        now, seat = time.monotonic(), process.seat
        slots = self._slots.of(process.block)
        running = tuple(slots.running())
        slots.clear()  # what it ran doesn't run any more
        self._slots.give(process.block, 0)
        self._blocks.append(process.block)
        if seat.successor is process:
            seat.successor = None
        if seat.holder is process:
            seat.holder, seat.successor = seat.successor, None
        if process.told:
            self._tell(self._event("stopped", process, exit=exit_, seconds=now - process.begun))
        elif process.ready is None:
            self._not_started(seat, process.failure or f"it ended before it was ready: {exit_}")
        else:
            lived = now - process.ready
            seat.short_lives = seat.short_lives + 1 if lived < _SHORT_LIFE else 0
            if seat.short_lives > 1:
                seat.not_before = now + _SHORT_LIFE_PAUSE
            seat.lost = process.pid, now
            self._tell(self._event("died", process, exit=exit_, running=running, seconds=lived))

    # -- stopping ------------------------------------------------------------------------------------------

    def _stop(self, urgency: int) -> None:
        """Stop everything: 1 within the grace, 2 at once, 3 by killing."""
        self._last_order = time.monotonic()
        urgency = min(urgency, _KILL)
        if urgency == self._urgency:
            return
        if not self._urgency and self._processes:
            log.info("stopping, running jobs may finish", grace=self._options.grace)
        elif urgency == _QUICK:
            log.warning("stopping at once, running jobs are interrupted and given back")
        self._urgency = urgency
        for process in self._processes.values():
            self._ask(process, urgency)

    def _ask(self, process: _Process, urgency: int) -> None:
        if urgency > process.told:
            process.told, process.told_at = urgency, time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(process.pid, _SIGNALS[urgency])

    def _escalate(self) -> None:
        """Kill what doesn't stop although it was told to: its claims come back by themselves."""
        now, leased = time.monotonic(), bool(self._urgency and self._slots.running())
        for process in list(self._processes.values()):
            if leased and process.seat.companion == _LEASES:
                process.told_at = now  # what the others run has leases for as long as they live
            if process.told in (_STOP, _QUICK):
                grace = self._options.grace if process.told == _STOP else 0.0
                if now - process.told_at > grace + INTERRUPT_SECONDS + 2 * FLUSH_SECONDS:
                    log.error("a worker process doesn't stop, killing it", pid=process.pid)
                    self._ask(process, _KILL)

    # -- telling -------------------------------------------------------------------------------------------

    def _event(
        self, kind: Literal["started", "died", "replaced", "stopped"], process: _Process, **what: Any
    ) -> Event:
        return Event(kind=kind, pid=process.pid, at=time.time(), companion=process.seat.companion, **what)

    def _tell(self, event: Event) -> None:
        event.log()
        try:
            self._on_event(event)
        except Exception:
            log.exception("whoever is told of events failed")


def _is_death(process: _Process) -> bool:
    """Whether a worker process that has ended did so by itself."""
    return not process.told and process.ready is not None and process.seat.companion is None


def _error_of(report: Report) -> CallboardError:
    """The error that another process reported."""
    if report.error == "UnknownQueue":
        return errors.UnknownQueue(report.text)
    if report.error == "SettingsError":
        return errors.SettingsError(report.text)
    return AppError(report.text)


def _in_words(code: int) -> str:
    """How a process ended: 'signal 9 (SIGKILL)' or 'exit code 1'."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
