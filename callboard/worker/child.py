"""One process that runs jobs, from its fork to its end.

It obeys its supervisor, not the terminal: SIGTERM stops it within the grace, SIGQUIT at once, and SIGINT,
which a Ctrl-C sends to everybody in the terminal, is ignored. When the supervisor dies, the pipe that both
hold ends, and the process stops by itself.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from callboard.app import load_app
from callboard.brokers.base import Broker
from callboard.errors import CallboardError
from callboard.loggers import get_logger
from callboard.logs import configure_logging
from callboard.metrics.jobs import all_metrics
from callboard.metrics.values import keep_shareable
from callboard.queues import Priority
from callboard.worker.cut_runs import CutRunMemory
from callboard.worker.garbage import look_for_garbage_less_often
from callboard.worker.leases import needs_leases
from callboard.worker.patterns import queues_from, select_queues
from callboard.worker.pulse import Pulse
from callboard.worker.reports import Report, Reports, report_of
from callboard.worker.slots import SlotMemory
from callboard.worker.worker import Worker

log = get_logger(__name__)

#: Exit codes of a process: it couldn't start; what it was to do has ended by itself.
NOT_STARTED, ENDED = 3, 4
#: Seconds that an orphan has to stop.
ORPHANED_SECONDS = 2.0
#: Seconds between two signs of life, where the supervisor looks for them.
_BEAT_SECONDS = 1.0
_ENDED_BYTE, _STOPPED_BYTE = 0, 255  # no signals have these numbers

#: What runs in a process of its own beside the workers, until the event is set.
Companion = Callable[[Broker, threading.Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all processes of one supervisor are told."""

    module: str
    modules: tuple[str, ...]
    patterns: tuple[str, ...]
    threads: int
    grace: float
    log_level: str
    log_format: str
    log_successes: bool = False
    companions: Mapping[str, Companion] = field(default_factory=dict)
    lease_owner: str = ""
    reserve: Mapping[Priority, int] = field(default_factory=dict)
    reports: Reports
    slots: SlotMemory
    deaths: CutRunMemory
    lifeline: int  # it can be read, and is at its end, when the supervisor is gone
    join: Callable[[int], Pulse] | None = None  # keeps a process' numbers where the supervisor sees them

    def load(self) -> Broker:
        """Load the application."""
        if self.join is not None:
            keep_shareable()
        return load_app(self.module, self.modules)


class _Service(Protocol):
    def start(self) -> None: ...
    def stop(self, *, grace: float) -> bool: ...
    def hurry(self) -> None: ...


def run_child(
    plan: Plan,
    *,
    block: int,
    companion: str | None,
    reserved: Priority | None = None,
    broker: Broker | None = None,
) -> NoReturn:
    """A process' main function.

    Args:
        block: Which slots it has.
        companion: What it runs instead of a worker.
        reserved: The least urgent jobs that it runs; any, if that isn't given.
        broker: The application, if this process was forked from one that has loaded it.
    """
    code = 1
    try:
        code = Child(plan, block, companion, reserved).run(broker)
    except BaseException:
        log.exception("a worker process failed")
    finally:
        # Not `sys.exit`: the frames and exit handlers of the process it was forked from are none of its own.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Child:
    """A process that runs a worker, or a companion of one."""

    def __init__(
        self, plan: Plan, block: int, companion: str | None, reserved: Priority | None = None
    ) -> None:
        self._plan = plan
        self._block = block
        self._companion = companion
        self._reserved = reserved
        self._pulse: Pulse | None = None
        self._finished = False
        self._ended_by_itself = False

    def run(self, broker: Broker | None) -> int:
        """Start, wait to be told to stop, stop; returns the exit code."""
        self._listen()
        self._plan.reports.send(Report("begun", os.getpid(), block=self._block))
        try:
            plan = self._plan
            configure_logging(level=plan.log_level, style=plan.log_format, successes=plan.log_successes)
            broker = broker or plan.load()
            look_for_garbage_less_often()
            if plan.join is not None:
                self._pulse = plan.join(self._block)
            broker.emit_after("process_boot")
            self._service = self._service_of(broker)
            self._service.start()
        except (Exception, SystemExit) as error:
            log.debug("a worker process can't start", exc_info=True)
            self._plan.reports.send(self._told(error))
            return NOT_STARTED
        self._plan.reports.send(Report("ready", os.getpid(), block=self._block))
        self._work()
        broker.close()
        return ENDED if self._ended_by_itself else 0

    def _told(self, error: BaseException) -> Report:
        report = report_of(error, "failed", self._block)
        if not isinstance(error, CallboardError):
            report.text = "".join(traceback.format_exception(error))
        return report

    def _service_of(self, broker: Broker) -> _Service:
        if self._companion is not None:
            run = self._plan.companions[self._companion]
            return _CompanionThread(self._companion, run, broker, ended=lambda: self._wake(_ENDED_BYTE))
        queues, threads = select_queues(broker.queues, self._plan.patterns), self._plan.threads
        if self._reserved is not None:
            queues, threads = queues_from(queues, self._reserved), self._plan.reserve[self._reserved]
        slots = self._plan.slots.of(self._block)
        return Worker(
            broker,
            queues,
            threads=threads,
            slots=slots,
            pulse=self._pulse,
            deaths=self._plan.deaths,
            lease_owner=self._plan.lease_owner if needs_leases(broker) else None,
        )

    def _listen(self) -> None:
        """Have signals wake the main thread, which does nothing else but wait for them."""
        self._awake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _wake(self, byte: int) -> None:
        os.write(self._waker, bytes([byte]))

    def _work(self) -> None:
        """Wait for the order to stop, and until it is done."""
        watched = [self._awake, self._plan.lifeline]
        stopping = False
        while not self._finished:
            readable, _, _ = select.select(watched, [], [], None if self._pulse is None else _BEAT_SECONDS)
            if self._pulse is not None:
                self._pulse.beat()
                for metrics in all_metrics():
                    metrics.show_running()
            orders = os.read(self._awake, 64) if self._awake in readable else b""
            if self._plan.lifeline in readable:
                watched.remove(self._plan.lifeline)
                log.error("the supervisor is gone, this worker process stops")
                _end_within(ORPHANED_SECONDS)
                orders += bytes([signal.SIGQUIT])
            if _STOPPED_BYTE in orders:
                return
            self._ended_by_itself |= _ENDED_BYTE in orders
            if orders and not stopping:
                stopping = True
                if not self._ended_by_itself:  # by whom, the supervisor can tell
                    self._plan.reports.send(Report("stopping", os.getpid(), block=self._block))
                threading.Thread(target=self._stop, name="callboard-stop", daemon=True).start()
            if signal.SIGQUIT in orders:
                self._service.hurry()

    def _stop(self) -> None:
        try:
            self._finished = self._service.stop(grace=self._plan.grace)
        except Exception:
            log.exception("stopping failed, what is claimed comes back when the process has ended")
        finally:
            self._wake(_STOPPED_BYTE)


class _CompanionThread:
    def __init__(self, name: str, run: Companion, broker: Broker, ended: Callable[[], None]) -> None:
        self._run = run
        self._broker = broker
        self._ended = ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"callboard-{name}", daemon=True)

    def _main(self) -> None:
        try:
            self._run(self._broker, self._stop)
        except BaseException:
            log.exception("it failed", what=self._thread.name)
        finally:
            if not self._stop.is_set():
                self._ended()

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, grace: float) -> bool:
        # Not only for the grace: what serves the workers ends after the last of them. Whoever takes too long is killed.
        self._stop.set()
        self._thread.join()
        return True

    def hurry(self) -> None:
        """It has nothing to give back."""


def _end_within(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
