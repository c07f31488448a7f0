"""What a job sees of itself while it runs: `current_job()`.

A `Run` is one run of one job on one thread. Asynchronous exceptions (a time limit, a cancel) are delivered
only while the actor's body is on the stack, so that they can't hit Callboard's own bookkeeping.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from dramatiq.middleware.threading import Interrupt, raise_thread_exception

from callboard.errors import CallboardError, CheckpointTooLarge
from callboard.loggers import get_logger

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")

#: Seconds between two reports of progress; what a job says between is replaced by what it says next.
_REPORT_SECONDS = 0.2


#: A checkpoint is a place to go on from, and no data: it is written whole, each time, to a store that all share.
MAX_CHECKPOINT_BYTES = 1_048_576


class Cancelled(Interrupt):
    """Raised in an actor's thread when its job was cancelled; let it pass."""


class LeaseLost(Interrupt):
    """Raised in an actor's thread when its job is another worker's by now; let it pass.

    This worker was frozen or cut off for too long. What the run came to is not recorded.
    """


class NoCurrentJob(CallboardError, RuntimeError):
    """`current_job()` was called where no job runs: outside of an actor's body."""


class Reporter(Protocol):
    """Where a run's news go. The broker is one."""

    def report_progress(self, run: Run, fraction: float | None, note: str) -> None: ...
    def is_cancelled(self, job_id: str) -> bool: ...
    def save_checkpoint(self, job_id: str, state: bytes) -> None: ...
    def load_checkpoint(self, job_id: str) -> bytes | None: ...


class StillOurs(Protocol):
    """Whether nobody else has the job. If the store may not be asked, for that can take seconds, only what is certain
    counts."""

    def __call__(self, *, ask: bool) -> bool: ...


class Elsewhere(Protocol):
    """Another process, in which the actor's body runs."""

    def call(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def interrupt(self, exception: type[BaseException]) -> None: ...


class Run:
    """One run of a job.

    Attributes:
        id: The job's id.
        actor: The actor's name.
        queue: The queue it came from.
        attempt: The number of this run, from 1; runs that a deploy interrupted don't count.
        time_limit: Seconds that the run may take, or None.
        replayed: Whether the job is a dead letter that was sent again.
        tags: The job's tags.
    """

    def __init__(
        self,
        *,
        job_id: str,
        actor: str,
        queue: str,
        attempt: int,
        reporter: Reporter,
        order: int = 0,
        tags: tuple[str, ...] = (),
        replayed: bool = False,
    ) -> None:
        self.id = job_id
        self.actor = actor
        self.queue = queue
        self.attempt = attempt
        self.order = order
        self.tags = tags
        self.replayed = replayed
        self.time_limit: float | None = None
        self.started = time.monotonic()
        self.still_ours: StillOurs | None = None  # None where that is certain
        self._reporter = reporter
        self._news: tuple[float | None, str] | None = None
        self._next_report = 0.0
        self._thread: int | None = None
        self._interrupted: type[BaseException] | None = None
        self._elsewhere: Elsewhere | None = None
        self._lock = threading.Lock()

    # -- for the job -------------------------------------------------------------------------------------

    def progress(self, fraction: float | None = None, note: str = "") -> None:
        """Say how far the job is: a fraction from 0 to 1, a few words, or both. Cheap enough for each row."""
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction}")
        self._news = (fraction, note)
        if time.monotonic() >= self._next_report:
            self.report()

    @property
    def log(self) -> FilteringBoundLogger:
        """A logger whose lines carry the job's id, actor and attempt."""
        logger: FilteringBoundLogger = get_logger("job").bind(
            job_id=self.id, actor=self.actor, attempt=self.attempt
        )
        return logger

    def cancelled(self) -> bool:
        """Whether somebody asked that this job stops. Long jobs look now and then, tidy up and return."""
        return self._reporter.is_cancelled(self.id)

    @property
    def deadline(self) -> datetime | None:
        """When the run's time limit ends, or None without one."""
        if self.time_limit is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=self.time_limit - (time.monotonic() - self.started))

    def stop_if_cancelled(self) -> None:
        """End the run here if somebody asked that it stops.

        Raises:
            Cancelled: Let it pass; the job then ends as cancelled.
        """
        if self.cancelled():
            raise Cancelled

    def checkpoint(self, state: Any) -> None:
        """Keep a state, as JSON of up to 1 MiB, for the next run of this job: after a crash, a deploy or a retry.

        It replaces what was kept before, and goes when the job succeeds or is cancelled. One that fails for good
        keeps it for 30 days, so that a replay resumes, too.

        Raises:
            TypeError: If it is no JSON.
            CheckpointTooLarge: If it is over 1 MiB.
            StoreUnavailable: If it couldn't be kept.
            LeaseLost: If the job is another worker's by now; let it pass.
        """
        data = msgspec.json.encode(state)
        if len(data) > MAX_CHECKPOINT_BYTES:
            raise CheckpointTooLarge(actor=self.actor, size=len(data), limit=MAX_CHECKPOINT_BYTES)
        self.keep(data)

    def last_checkpoint(self) -> Any:
        """What an earlier run of this job kept, or None.

        Raises:
            StoreUnavailable: If the store can't be read.
        """
        data = self._reporter.load_checkpoint(self.id)
        return msgspec.json.decode(data) if data is not None else None

    # -- for the machinery -------------------------------------------------------------------------------

    def keep(self, state: bytes) -> None:
        """Keep a checkpoint that is encoded.

        Raises:
            StoreUnavailable
            LeaseLost
        """
        if not self._is_ours():
            raise LeaseLost("its job is another worker's by now")
        self._reporter.save_checkpoint(self.id, state)

    def _is_ours(self, *, ask: bool = True) -> bool:
        return self.still_ours is None or self.still_ours(ask=ask)

    def report(self) -> None:
        """Pass on what the job last said of its progress, if that hasn't been done."""
        if self._news is not None and self._interrupted is not LeaseLost and self._is_ours(ask=False):
            (fraction, note), self._news = self._news, None
            self._next_report = time.monotonic() + _REPORT_SECONDS
            self._reporter.report_progress(self, fraction, note)

    @property
    def interrupted_by(self) -> type[BaseException] | None:
        """What was raised in the actor's body from outside, if anything was."""
        return self._interrupted

    def interrupt(self, exception: type[BaseException]) -> bool:
        """Raise an exception in the actor's body, once at most. False if the body isn't running."""
        with self._lock:
            if self._thread is None or self._interrupted is not None:
                return False
            self._interrupted = exception
            if self._elsewhere is not None:
                self._elsewhere.interrupt(exception)
            else:
                raise_thread_exception(self._thread, exception)  # type: ignore[no-untyped-call]
            return True

    def move(self, elsewhere: Elsewhere) -> None:
        """Have the body run in another process."""
        self._elsewhere = elsewhere

    def call(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Run the actor's body; only in here can `interrupt` reach it."""
        if self._thread is not None:  # an actor called by an actor: still the same body
            return fn(*args, **kwargs)
        if self._elsewhere is not None:
            return self._call_elsewhere(self._elsewhere, args, kwargs)  # type: ignore[no-any-return]
        finished = False
        result: Any = None
        self._thread = threading.get_ident()
        try:
            try:
                result = fn(*args, **kwargs)
                finished = True
            finally:
                with self._lock:
                    self._thread = None
        except BaseException as error:
            if not finished and self._is_of_cancellation(error):
                raise Cancelled from error
            if self._interrupted is None:
                raise
            if not isinstance(error, self._interrupted):
                if _led_to(
                    self._interrupted, error
                ):  # its cleaning up failed: it was interrupted all the same
                    raise self._interrupted from error
                raise
            if not finished:
                raise
            self._thread = None  # it came as the body had returned: the job is done
        if self._interrupted is not None:
            self._swallow_pending()
        return result  # type: ignore[no-any-return]

    def _is_of_cancellation(self, error: BaseException) -> bool:
        """Whether an error is no failure, for the job was to stop and it is how it stopped."""
        if isinstance(error, Cancelled) or getattr(error, "ends_the_worker", False):
            return False
        return self.cancelled()

    def _call_elsewhere(self, elsewhere: Elsewhere, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._thread = threading.get_ident()
        try:
            return elsewhere.call(self, args, kwargs)
        finally:
            with self._lock:
                self._thread = None

    def _swallow_pending(self) -> None:
        """Let an exception that was set while the body returned come up here, where it does no harm."""
        try:
            for _ in range(100):
                pass
        except Interrupt:
            return


def _led_to(interrupt: type[BaseException], error: BaseException) -> bool:
    """Whether an error was raised while an interrupt was handled."""
    earlier = error.__cause__ or error.__context__
    for _ in range(100):
        if earlier is None or isinstance(earlier, interrupt):
            break
        earlier = earlier.__cause__ or earlier.__context__
    return isinstance(earlier, interrupt)


_current: ContextVar[Run | None] = ContextVar("callboard_run", default=None)


def current_job() -> Run:
    """The job that runs here, also in an async actor and in tasks it starts.

    Raises:
        NoCurrentJob: If none does.
    """
    run = _current.get()
    if run is None:
        raise NoCurrentJob("current_job() was called where no job runs; call it inside an actor")
    return run


def running_job() -> Run | None:
    """The job that runs here, if one does."""
    return _current.get()


def enter_run(run: Run | None) -> None:
    """Make a run the current one of this thread, or none."""
    _current.set(run)
