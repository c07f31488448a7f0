"""Locks on files, which the kernel drops when their holder dies.

`flock` belongs to the open file, and a forked child shares that: it would hold its dead parent's lock.
So every such file is closed in a child as soon as Python has forked it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from callboard.brokers.file import forks

_PATIENCE = 0.0002  # seconds between two tries, growing to
_MOST_PATIENCE = 0.001


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

    def lock(self, until: float) -> bool:
        """Wait for the lock until this moment of `time.monotonic`.

        The kernel's own queue would be fairer, but nothing can end a wait in it when the holder is frozen.
        """
        patience = _PATIENCE
        while not self.try_lock():
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(patience, left))
            patience = min(patience * 1.2, _MOST_PATIENCE)
        return True

    def wait(self) -> None:
        """Wait for the lock, however long it takes."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
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
