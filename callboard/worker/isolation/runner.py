"""A runner: the process in which isolated jobs run, one after the other.

Its main thread runs them, so that a signal ends whatever sleep or wait a job is in. One thread hears what the worker
says meanwhile, another tells it what the job says: an exception that is raised in the main thread can't cut a frame
in two. When the connection ends, so does the runner.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import dramatiq
import msgspec
from dramatiq.asyncio import get_event_loop_thread, set_event_loop_thread
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from callboard.brokers.base import Broker
from callboard.context import Cancelled, LeaseLost, Run, enter_run
from callboard.errors import Permanent, StoreUnavailable
from callboard.loggers import get_logger
from callboard.metrics.runners import join_loaded
from callboard.worker.event_loop import JobLoopThread
from callboard.worker.isolation import failure
from callboard.worker.isolation.protocol import (
    MAX_RESULT_BYTES,
    Answer,
    Begun,
    CancelledFlag,
    Done,
    Failed,
    FromRunner,
    Interrupt,
    Job,
    Load,
    Progress,
    Save,
    frame,
    frames_to_runner,
)

log = get_logger(__name__)

#: The exit code of a runner that can't tell how its job has ended.
CONNECTION_LOST = 113
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # the kernel, out of memory, takes this process before any worker
_NUDGE = signal.SIGURG  # ignored by default, and used by nobody: it only wakes the main thread
_INTERRUPTS: dict[str, type[BaseException]] = {
    cls.__name__: cls for cls in (Cancelled, LeaseLost, TimeLimitExceeded, Shutdown)
}


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent has died."""
    hear_of_death(parent, signal.SIGKILL)


def hear_of_death(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent has died."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def run_runner(connection: socket.socket, dump: int, nursery: int) -> NoReturn:
    """A runner's main function.

    Args:
        connection: To the thread whose jobs it runs.
        dump: A file for the stack of a run that is killed.
        nursery: The process that it was forked from.
    """
    os.setsid()  # what a job starts can be ended with it, and a terminal's Ctrl-C is the worker's to hear
    die_with(nursery)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(_NUDGE, lambda *_: None)
    faulthandler.enable(dump, all_threads=False)
    # A thread that holds the GIL is in nobody's way here: this is written in C.
    faulthandler.register(signal.SIGTERM, dump, all_threads=False, chain=True)
    Runner(connection).serve()


class Runner:
    """Runs jobs until its connection ends. It is what its jobs report to.

    Args:
        connection: To the worker.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._outbox: SimpleQueue[FromRunner] = SimpleQueue()
        self._brokers: set[Broker] = set()
        self._run: Run | None = None
        self._is_cancelled = False
        self._pid = os.getpid()
        self._main = threading.get_ident()
        os.register_at_fork(after_in_child=connection.close)

    def serve(self) -> NoReturn:
        """Its life."""
        for part in (self._hear, self._tell):
            threading.Thread(target=part, name=f"callboard-runner{part.__name__}", daemon=True).start()
        while (job := self._jobs.get()) is not None:
            self._process(job)
            del job
        for broker in self._brokers:
            with suppress(Exception):
                broker.close()
        _flush()
        os._exit(0)

    # -- talking -----------------------------------------------------------------------------------------

    def _hear(self) -> None:
        frames = frames_to_runner()
        while True:
            try:
                data = self._connection.recv(65_536)
            except OSError:
                data = b""
            if not data:
                break
            for message in frames.feed(data):
                if isinstance(message, Job):
                    self._is_cancelled = False
                    self._jobs.put(message)
                elif isinstance(message, Answer):
                    self._answers.put(message)
                elif isinstance(message, CancelledFlag):
                    self._is_cancelled = True
                else:
                    self._interrupt(message)
        if self._run is not None:  # nobody waits for it any more
            os._exit(CONNECTION_LOST)
        self._jobs.put(None)

    def _interrupt(self, message: Interrupt) -> None:
        exception = _INTERRUPTS[message.exception]
        self._is_cancelled |= exception is Cancelled
        for _ in range(100):  # its body may not have begun
            run = self._run
            if run is None:
                return
            if run.interrupt(exception):
                signal.pthread_kill(self._main, _NUDGE)  # out of a sleep, for instance
                return
            time.sleep(0.01)

    def _tell(self) -> None:
        while True:
            self._send(self._outbox.get())

    def _send(self, message: FromRunner) -> None:
        try:
            self._connection.sendall(frame(message))
        except OSError:
            os._exit(CONNECTION_LOST)

    # -- running -----------------------------------------------------------------------------------------

    def _process(self, job: Job) -> None:
        run = Run(
            job_id=job.id,
            actor=job.actor,
            queue=job.queue,
            attempt=job.attempt,
            order=job.order,
            tags=tuple(job.tags),
            replayed=job.replayed,
            reporter=self,
        )
        run.started, run.time_limit = job.started, job.time_limit
        self._run = run
        enter_run(run)
        self._send(Begun())  # by itself: it has to be out before the body may end this process
        outcome: FromRunner
        try:
            outcome = self._call(job)
        except BaseException as error:  # noqa: BLE001  whatever a job raises is its own failure
            outcome = failure.tell(error)
        finally:
            self._run = None
            enter_run(None)
        if os.getpid() != self._pid:  # a process that the job forked, and that came out of its body
            os._exit(0)
        run.report()
        _flush()
        self._outbox.put(outcome)

    def _call(self, job: Job) -> Done | Failed:
        actor = self._find(job)
        if get_event_loop_thread() is None:
            set_event_loop_thread(_LazyLoop())  # type: ignore[arg-type]  # it behaves as one
        args, kwargs = json.loads(job.payload)
        result = actor.fn(*args, **kwargs)
        if result is None or not job.wants_result:
            return Done(None)
        data = msgspec.json.encode(result)
        if len(data) > MAX_RESULT_BYTES:
            raise Permanent(
                f"the result of '{job.actor}' has {len(data):,} bytes, over the limit of {MAX_RESULT_BYTES:,} of "
                "isolated jobs; put the data into storage and return its key instead"
            )
        return Done(data)

    def _find(self, job: Job) -> dramatiq.Actor[Any, Any]:
        found: Any = getattr(import_module(job.module), job.name, None)
        join_loaded()
        if not isinstance(found, dramatiq.Actor):
            raise Permanent(f"'{job.module}' has no actor '{job.name}' where isolated jobs run")
        if isinstance(found.broker, Broker):
            self._brokers.add(found.broker)
        return found

    # -- what a run reports (see `callboard.context.Reporter`) ------------------------------------------------

    def report_progress(self, run: Run, fraction: float | None, note: str) -> None:
        """Pass it on."""
        self._outbox.put(Progress(fraction, note))

    def is_cancelled(self, job_id: str) -> bool:
        """Whether the worker has said so."""
        return self._is_cancelled

    def save_checkpoint(self, job_id: str, state: bytes) -> None:
        """Have it kept.

        Raises:
            StoreUnavailable: If it couldn't be.
        """
        self._ask(Save(state))

    def load_checkpoint(self, job_id: str) -> bytes | None:
        """What was kept.

        Raises:
            StoreUnavailable: If the store can't be read.
        """
        return self._ask(Load())

    def _ask(self, question: Save | Load) -> bytes | None:
        self._outbox.put(question)
        answer = self._answers.get()
        if answer.error:
            raise StoreUnavailable(answer.error)
        return answer.state


class _LazyLoop:
    """The event loop thread, which starts when the first async job needs it."""

    def __init__(self) -> None:
        self._thread: JobLoopThread | None = None

    def __getattr__(self, name: str) -> Any:
        if self._thread is None:
            self._thread = JobLoopThread(logging.getLogger(__name__))
            self._thread.start(timeout=30.0)
        return getattr(self._thread, name)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        flush: Callable[[], None] = stream.flush
        with suppress(Exception):  # a job may have closed or replaced it
            flush()
