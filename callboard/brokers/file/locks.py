"""Locks on files, which the kernel drops when their holder dies.

`flock` belongs to the open file, and a forked child shares that: it would hold its dead parent's lock.
So every such file is closed in a child as soon as Python has forked it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from callboard import forks

_TRIES = 2  # before we queue up: most waits are over by then
_PAUSE = 0.00005  # seconds between them


class LockedFile:
    """An open file that can be locked, and that no child process keeps open."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        forks.follow(self)

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Wait for the lock, however long it takes."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Drop the lock, if we have it."""
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, and so drop the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def forked(self) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class TurnLock(LockedFile):
    """A lock for which one thread of a process at a time can wait, until a deadline.

    The kernel lets waiters in by turns, which keeps the longest wait short; but nothing can end a wait in
    its queue, and the holder may be frozen. So a thread of our own stands in the queue for the caller, who
    may leave.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._mutex = threading.Lock()
        self._asked = threading.Semaphore(0)
        self._queued = False  # our thread is in the kernel's queue
        self._latch: threading.Lock | None = None  # opened for the caller when the lock is his
        self._thread: threading.Thread | None = None

    def lock(self, until: float) -> bool:
        """Wait for the lock until this moment of `time.monotonic`. False if it didn't come."""
        for _ in range(_TRIES):
            if self._take():
                return True
            time.sleep(_PAUSE)
        if self._take():
            return True
        latch = threading.Lock()
        latch.acquire()
        with self._mutex:
            self._latch = latch
            if not self._queued:
                self._queued = True
                self._asked.release()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._queue_up, name="file-turns", daemon=True)
                    self._thread.start()
        try:
            return latch.acquire(timeout=max(0.0, until - time.monotonic())) or self._came_late(latch)
        except BaseException:
            if self._came_late(latch):
                self.unlock()
            raise

    def _take(self) -> bool:
        # While our thread is in the queue, the lock may become ours at any moment.
        return not self._queued and self.try_lock()

    def _came_late(self, latch: threading.Lock) -> bool:
        """Leave; True if the lock has just become ours."""
        with self._mutex:
            if self._latch is latch:
                self._latch = None
                return False
            return True

    def _queue_up(self) -> None:
        while True:
            self._asked.acquire()
            try:
                self.wait()
            except (OSError, ValueError):  # closed
                return
            with self._mutex:
                self._queued = False
                if self.fd < 0:
                    return
                if self._latch is None:
                    self.unlock()
                else:
                    self._latch.release()
                    self._latch = None

    def close(self) -> None:
        super().close()
        self._asked.release()  # so that our thread ends

    def forked(self) -> None:
        """Only close: another thread may have held the mutex when the process forked."""
        super().close()

    def __del__(self) -> None:
        LockedFile.close(self)
