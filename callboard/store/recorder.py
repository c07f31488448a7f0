"""Writes what becomes known of jobs, behind the backs of those who run them.

`record` puts a change into a deque and returns. A thread, started with the first change, wakes up, waits a
moment for company, and writes a batch; then it waits again, unless a whole batch is there already. (To write
each change as soon as the last is written would cost those who record half of their time.) While the store
can't be written the thread tries again and again, ever less often; changes wait meanwhile, up to a bound,
and beyond it the oldest are dropped and counted. (The oldest, because a record whose last state is missing
would be wrong for ever; one whose beginning is missing is only poorer.) When the store is back it is told how
many were dropped, and when, so that nobody takes a missing record for a job that never was.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from callboard.store.base import Store

log = get_logger(__name__)

_FIRST_RETRY = 0.1
_LAST_RETRY = 5.0
_IDLE_LOOK = 5.0
_PATIENCE_AT_EXIT = 2.0
# A job that reports its progress at every row gives many changes that come to one: they don't fill a batch.
_CHANGES_PER_JOB = 20

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class _Mark:
    """A place among the changes that somebody waits for to be passed."""

    def __init__(self) -> None:
        self.passed = threading.Event()


class Recorder:
    """Writes changes to a store from a thread of its own.

    Parameters:
        store: Where to.
        max_pending: How many changes wait for a store that can't be written, before the oldest are dropped.
        interval: Seconds that a change waits for others.
        batch: How many jobs' changes are written at once.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_pending: int = 50_000,
        interval: float = 0.05,
        batch: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._max_pending = max_pending
        self._interval = interval
        self._batch = batch
        self._clock = clock
        self._begin()
        _recorders.add(self)

    def _begin(self) -> None:
        """The state of a process that has recorded nothing yet."""
        self.dropped = 0
        self._pending: deque[Change | Callable[[], Change | None] | _Mark] = deque()
        self._writing: list[Change] = []
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._closing = False
        self._hurry = False  # somebody waits: write now, whatever the interval
        # A bare lock that the thread waits for and anybody may open: unlike a condition or an event it can
        # be rung from a signal handler, or from a thread that an exception interrupts half-way.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._starting = threading.Lock()
        self._drop_lock = threading.Lock()
        self._unreported = 0
        self._dropped_since = 0.0
        self._dropped_until = 0.0

    # -- for those who record ----------------------------------------------------------------------------

    def record(self, change: Change) -> None:
        """Have a change written soon. Takes a microsecond; never waits, never raises."""
        pending = self._pending
        pending.append(change)
        if self._asleep:
            self._ring()
        elif self._thread is None:
            self._start()
        if len(pending) > self._max_pending:
            self._drop_oldest()

    def record_lazily(self, make: Callable[[], Change | None]) -> None:
        """Have a change written soon that may be out of date by then: `make` is called when its turn has come,
        in the recorder's thread, and returns None if there is nothing to tell any more."""
        self.record(make)  # type: ignore[arg-type]  # told apart by `_made`

    def record_many_lazily(self, makes: Sequence[Callable[[], Change | None]]) -> None:
        """`record_lazily` for many at once, in their sequence."""
        for start in range(0, len(makes), self._batch):  # in pieces, for the sake of the bound
            piece = makes[start : start + self._batch]
            self._pending.extend(piece[:-1])
            self.record_lazily(piece[-1])

    @property
    def pending(self) -> int:
        """How many changes wait to be written."""
        return len(self._pending) + len(self._writing)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was recorded before is written. False if that took too long.

        What was dropped is not waited for; `dropped` counts it.
        """
        if not self._pending and (self._asleep or self._thread is None):
            return True
        mark = _Mark()
        self._pending.append(mark)
        self._hurry = True
        if not self._start():
            return False
        self._ring()
        return mark.passed.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is left, for up to `timeout` seconds, and stop the thread. It can be closed twice."""
        self.flush(timeout)
        with self._starting:
            thread = self._thread
            self._closing = True
        if thread is not None and thread is not threading.current_thread():
            self._ring()
            thread.join(timeout)

    # -- dropping ----------------------------------------------------------------------------------------

    def _drop_oldest(self) -> None:
        with self._drop_lock:
            while len(self._pending) > self._max_pending:
                try:
                    oldest = self._pending.popleft()
                except IndexError:
                    return
                if isinstance(oldest, _Mark):
                    oldest.passed.set()
                elif (change := _made(oldest)) is not None:
                    self._count_dropped(change)

    def _count_dropped(self, change: Change) -> None:
        now = self._clock()
        self._dropped_since = min(self._dropped_since or change.at, change.at)
        self._dropped_until = now
        self._unreported += 1
        self.dropped += 1

    def _report_dropped(self) -> None:
        with self._drop_lock:
            count, since, until = self._unreported, self._dropped_since, self._dropped_until
        if not count:
            return
        self._store.report_dropped(count, since=since, until=until)
        log.warning("records dropped", count=count, since=since, until=until)
        with self._drop_lock:
            self._unreported -= count
            self._dropped_since = until

    # -- the thread --------------------------------------------------------------------------------------

    def _start(self) -> bool:
        with self._starting:
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="callboard-recorder", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # too many threads, or the interpreter is shutting down
                    self._thread = None
                    return False
        return True

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def _run(self) -> None:
        while not self._may_stop():
            self._sleep()
            if self._pending and not self._hurry:
                self._bell.acquire(timeout=self._interval)
            self._write_batch()
            while len(self._pending) >= self._batch or (self._hurry and self._pending):
                self._write_batch()
            self._hurry = False  # who has just asked has rung the bell, too

    def _write_batch(self) -> None:
        marks = self._take()
        if not self._write_surely():
            self._abandon(marks)
        for mark in marks:
            mark.passed.set()

    def _may_stop(self) -> bool:
        if not self._closing:
            return False
        with self._starting:
            # In this sequence: whoever records now either is seen here, or sees that there is no thread.
            self._thread = None
            if self._pending:
                self._thread = threading.current_thread()
                return False
        return True

    def _sleep(self) -> None:
        self._asleep = True
        if not self._pending and not self._closing:
            self._bell.acquire(timeout=_IDLE_LOOK)
        self._asleep = False

    def _take(self) -> list[_Mark]:
        """Move a batch from `_pending` to `_writing`; returns the marks that it passes."""
        marks = []
        jobs: set[str] = set()
        changes = self._writing = []
        while len(jobs) < self._batch and len(changes) < self._batch * _CHANGES_PER_JOB:
            try:
                oldest = self._pending.popleft()
            except IndexError:
                break
            if isinstance(oldest, Change):
                change: Change | None = oldest
            elif isinstance(oldest, _Mark):
                marks.append(oldest)
                continue
            else:
                change = _made(oldest)
            if change is not None:
                changes.append(change)
                jobs.add(change.job_id)
        return marks

    def _write_surely(self) -> bool:
        """Write the batch, however long it takes. False if the recorder was closed meanwhile."""
        try:
            written = self._write_when_possible(self._writing)
        except Exception:
            log.exception("a batch of records can't be written, trying one by one")
            written = self._write_one_by_one()
        if written:
            self._writing = []
        return written

    def _write_one_by_one(self) -> bool:
        while self._writing:
            try:
                if not self._write_when_possible(self._writing[:1]):
                    return False
            except Exception:
                log.exception("a record can't be written", job_id=self._writing[0].job_id)
                with self._drop_lock:
                    self._count_dropped(self._writing[0])
            del self._writing[0]
        return True

    def _write_when_possible(self, changes: Sequence[Change]) -> bool:
        delay = _FIRST_RETRY
        failed = False
        while True:
            try:
                if changes:
                    self._store.write(changes)
                self._report_dropped()
            except StoreUnavailable as error:
                if not failed:
                    log.warning(
                        "records can't be written, jobs go on", error=str(error), pending=self.pending
                    )
                failed = True
            else:
                if failed:
                    log.info("records can be written again", pending=self.pending)
                return True
            if self._closing:
                return False
            self._bell.acquire(timeout=delay)
            delay = min(delay * 2, _LAST_RETRY)

    def _abandon(self, marks: list[_Mark]) -> None:
        """Count as dropped what can't be written before the process ends."""
        with self._drop_lock:
            for change in self._writing:
                self._count_dropped(change)
            self._writing = []
            while self._pending:
                oldest = self._pending.popleft()
                if isinstance(oldest, _Mark):
                    marks.append(oldest)
                elif (made := _made(oldest)) is not None:
                    self._count_dropped(made)
        log.warning("records dropped, the store couldn't be written to the end", count=self._unreported)


def _made(pending: Change | Callable[[], Change | None]) -> Change | None:
    """A change, made now if it was recorded lazily."""
    if not callable(pending):
        return pending
    try:
        return pending()
    except Exception:
        log.exception("a change can't be made")
        return None


def _after_fork_in_child() -> None:
    # What the parent has recorded is the parent's to write, and its thread isn't here.
    for recorder in list(_recorders):
        recorder._begin()


def _at_exit() -> None:
    for recorder in list(_recorders):
        recorder.close(_PATIENCE_AT_EXIT)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
