"""One isolated run, as the worker's thread sees it: hand over, listen, look after it, and end it if need be.

How a run is ended: the exception is raised in the job's body, which has a second to come to an end. Then its process
gets SIGTERM, which leaves the stack that it was in, and soon after that SIGKILL. Nothing of that waits for Python code
of the job. A run that is told that it is cancelled sees the flag first; when its grace is over, or its time limit,
whoever watches those calls `Run.interrupt`, which arrives here.
"""

from __future__ import annotations

import json
import select
import signal
import threading
import time
from typing import Any, NoReturn

import msgspec
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from callboard.context import Cancelled, LeaseLost, Reporter, Run
from callboard.errors import IsolatedJobDied, MemoryExceeded, StoreUnavailable
from callboard.isolation import Isolation
from callboard.worker.isolation import failure
from callboard.worker.isolation.pool import Pool, RunnerHandle
from callboard.worker.isolation.protocol import (
    Answer,
    Begun,
    CancelledFlag,
    ConnectionSpoilt,
    Done,
    Failed,
    FromRunner,
    Interrupt,
    Job,
    Load,
    Progress,
    Save,
    ToRunner,
    frame,
    frames_from_runner,
)
from callboard.worker.isolation.runner import CONNECTION_LOST

#: Seconds between two looks at a run's memory and at what is to become of it.
LOOK_SECONDS = 0.05
#: Seconds from the exception in the body to SIGTERM, and from there to SIGKILL.
INTERRUPT_SECONDS, TERM_SECONDS = 1.0, 0.3
#: Seconds that a runner has to take what it is told.
_SEND_SECONDS = 10.0
#: Seconds within which a worker that is told to stop begins to, after a runner that was told as well.
_STOP_SECONDS = 2.0
_CHUNK = 1 << 18
#: An idle runner may die as it is taken; so often another one is tried.
_TRIES = 3


class IsolatedBody:
    """An actor's body, for `Run.move`.

    Args:
        pool: Where runners come from.
        reporter: Where the run's news go.
        isolation: What the actor asks for.
        module: The module that has the actor.
        name: Its name there.
        wants_result: Whether somebody asks what it returns.
        stopping: Set when the worker stops.
    """

    def __init__(
        self,
        pool: Pool,
        reporter: Reporter,
        isolation: Isolation,
        *,
        module: str,
        name: str,
        wants_result: bool,
        stopping: threading.Event,
    ) -> None:
        self._pool = pool
        self._reporter = reporter
        self._isolation = isolation
        self._module = module
        self._name = name
        self._wants_result = wants_result
        self._stopping = stopping
        self._interrupt: type[BaseException] | None = None

    def interrupt(self, exception: type[BaseException]) -> None:
        """End the run by an exception in its body, and if that doesn't help, without its help."""
        self._interrupt = exception

    def call(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body in a runner.

        Raises:
            IsolatedJobDied: Its process ended before it did.
            BaseException: Whatever it raised; what it was interrupted with.
        """
        job = self._job(run, args, kwargs)
        max_jobs = self._isolation.max_jobs
        for attempt in range(1, _TRIES + 1):
            runner = self._pool.take(max_jobs=max_jobs)
            watched = _WatchedRun(
                runner, run, self, self._reporter, self._isolation.memory_bytes, self._stopping
            )
            usable = False
            try:
                outcome = watched.follow(job)
                usable = outcome is not None and self._interrupt is None and not run.cancelled()
                if outcome is None and (watched.begun or self._interrupt is not None or attempt == _TRIES):
                    watched.raise_end()
            finally:
                if usable:
                    runner.jobs += 1
                    self._pool.put_back(runner, max_jobs=max_jobs)
                else:
                    self._pool.end(runner)
            if isinstance(outcome, Failed):
                raise failure.remake(outcome)
            if outcome is not None:
                return None if outcome.result is None else msgspec.json.decode(outcome.result)
        raise AssertionError

    @property
    def interrupted_with(self) -> type[BaseException] | None:
        """What the run is to end with."""
        return self._interrupt

    def _job(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        return Job(
            module=self._module,
            name=self._name,
            id=run.id,
            actor=run.actor,
            queue=run.queue,
            attempt=run.attempt,
            order=run.order,
            tags=list(run.tags),
            replayed=run.replayed,
            started=run.started,
            time_limit=run.time_limit,
            wants_result=self._wants_result,
            payload=json.dumps([args, kwargs]).encode(),
        )


class _WatchedRun:
    """A run in one runner."""

    def __init__(
        self,
        runner: RunnerHandle,
        run: Run,
        body: IsolatedBody,
        reporter: Reporter,
        memory_limit: int | None,
        stopping: threading.Event,
    ) -> None:
        self.begun = False
        self._stopping = stopping
        self._runner = runner
        self._run = run
        self._body = body
        self._reporter = reporter
        self._memory_limit = memory_limit
        self._memory = 0
        self._over_memory = False
        self._spoilt = False
        self._told_cancelled = False
        self._steps: list[tuple[float, int]] | None = None  # when which signal is sent
        self._connection = runner.connection
        self._connection.settimeout(_SEND_SECONDS)

    def follow(self, job: Job) -> Done | Failed | None:
        """Until the run ends. None if its process did before it."""
        frames = frames_from_runner()
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        self._send(job)
        next_look = 0.0
        while True:
            data: bytes | None = None
            if waiting.poll(LOOK_SECONDS * 1000):
                data = self._receive()
                if not data:
                    return None
                try:
                    for message in frames.feed(data):
                        if isinstance(message, Done | Failed):
                            return message
                        self._heed(message)
                except ConnectionSpoilt:
                    self._spoilt = True
                    return None
            if (now := time.monotonic()) >= next_look:
                next_look = now + LOOK_SECONDS
                self._look(now)

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(_CHUNK)
        except OSError:
            return b""

    def _send(self, message: ToRunner) -> None:
        try:
            self._connection.sendall(frame(message))
        except TimeoutError:
            self._runner.kill()  # stopped, or it would have taken it
        except OSError:
            return  # it has ended, as the next read will tell

    def _heed(self, message: FromRunner) -> None:
        if isinstance(message, Begun):
            self.begun = True
        elif isinstance(message, Progress):
            self._reporter.report_progress(self._run, message.fraction, message.note)
        elif isinstance(message, Save | Load):
            self._send(self._answer(message))

    def _answer(self, message: Save | Load) -> Answer:
        try:
            if isinstance(message, Load):
                return Answer(self._reporter.load_checkpoint(self._run.id))
            self._run.keep(message.state)
        except LeaseLost as error:
            self._run.interrupt(LeaseLost)
            return Answer(error=str(error))
        except StoreUnavailable as error:
            return Answer(error=str(error) or "the store is away")
        return Answer()

    # -- looking after it --------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        self._memory = self._runner.memory() or self._memory
        if self._memory_limit is not None and self._memory > self._memory_limit and not self._over_memory:
            self._over_memory = True
            self._runner.kill()
        run, body = self._run, self._body
        if (
            run.time_limit is not None
            and now >= run.started + run.time_limit
            and body.interrupted_with is None
        ):
            run.interrupt(TimeLimitExceeded)
        if not self._told_cancelled and run.cancelled():
            self._told_cancelled = True
            self._send(CancelledFlag())
        if self._steps is None and body.interrupted_with is not None:
            self._send(Interrupt(body.interrupted_with.__name__))
            term = now + INTERRUPT_SECONDS
            self._steps = [(term, signal.SIGTERM), (term + TERM_SECONDS, signal.SIGKILL)]
        while self._steps and now >= self._steps[0][0]:
            self._runner.kill(self._steps.pop(0)[1])

    def raise_end(self) -> NoReturn:
        """Raise what the end of the process was."""
        runner = self._runner
        by_itself = runner.ended.wait(1.0)  # its connection ends a moment before it does
        if not by_itself:
            runner.kill()
            runner.ended.wait(_SEND_SECONDS)
        interrupt = self._body.interrupted_with
        error: BaseException
        if interrupt is Cancelled or (interrupt is None and self._told_cancelled):
            error = Cancelled("its process was killed")
        elif interrupt is not None:
            text = "its process was killed"
            if interrupt is TimeLimitExceeded:
                text = (
                    f"it ran longer than its limit of {self._run.time_limit:g} s, and its process was killed"
                )
            error = interrupt(text)
        elif self._over_memory:
            error = MemoryExceeded(f"its process was {self._story(runner)}")
        elif runner.exit_code == -signal.SIGTERM and self._stopping.wait(_STOP_SECONDS):
            # Whoever stops the worker, such as systemd, may tell all of its processes, and this one heard it first.
            error = Shutdown("its process was told to stop, as its worker was")
        elif not by_itself or self._spoilt or runner.exit_code == CONNECTION_LOST:
            error = IsolatedJobDied("it closed or spoilt its process's connection to the worker")
        else:
            error = IsolatedJobDied(f"its process {self._story(runner)}")
        if stack := runner.dumped():
            error.told_traceback = f"{type(error).__name__}: {error}\n\nIts process was here:\n{stack}"  # type: ignore[attr-defined]
        raise error

    def _story(self, runner: RunnerHandle) -> str:
        size = f" while at {_gib(self._memory)}" if self._memory else ""
        limit = f", limit {_gib(self._memory_limit)}" if size and self._memory_limit is not None else ""
        code = runner.exit_code
        if self._over_memory:
            return f"killed by signal 9 (SIGKILL){size}{limit}"
        if code is None:
            return f"ended, nobody knows how{size}{limit}"
        if code < 0:
            return f"was killed by signal {-code} ({_signal_name(-code)}){size}{limit}"
        return f"ended with exit code {code} before it was done"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _gib(size: int) -> str:
    if size >= 1 << 30:
        return f"{size / (1 << 30):.1f} GiB".replace(".0 ", " ")
    return f"{size / (1 << 20):.0f} MiB"
