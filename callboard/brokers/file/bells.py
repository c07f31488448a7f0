"""How whoever puts a message wakes whoever waits for one.

A worker that waits sets its flag in the file `workers/idle`, and sleeps on a named pipe of its own, the
bell. Who puts a message looks at the flags, takes down that of a worker that wants the queue, and rings
its bell: microseconds if nobody waits, 0.1 ms if somebody does. A ring that gets lost costs a second, no
message: nobody sleeps longer than that.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
from collections.abc import Collection, Iterable
from pathlib import Path

from callboard import forks
from callboard.brokers.file.schema import FIRST_WORKER, MAX_WORKERS

_MASK = (
    32  # bytes; a queue's bit is its number modulo their bits, so a worker may be woken in vain, never missed
)


class Bell:
    """A worker's own bell, and its flag."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._path = folder / f"{worker}.bell"
        self._slot = worker - FIRST_WORKER
        self._board = _Board(folder)
        self._path.unlink(missing_ok=True)
        os.mkfifo(self._path)
        # Open for both, so that it never reports an end when a writer leaves.
        self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        forks.follow(self)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self.stop_listening()

    def want(self, queues: Iterable[int]) -> None:
        """Say which queues it is to be rung for."""
        self._board.write_mask(self._slot, queues)

    def listen(self, *, waits: bool) -> None:
        """Forget all rings so far; what they rang for must be looked for after this. If `waits`, others are
        asked to ring, else only the worker itself may."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
        self._board.write_flag(self._slot, waits)

    def stop_listening(self) -> None:
        self._board.write_flag(self._slot, False)

    def wait(self, timeout: float) -> bool:
        """Sleep until it rings; False if `timeout` seconds went by."""
        return bool(self._poll.poll(max(0, timeout) * 1000))

    def ring(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._fd, b"!")

    def close(self) -> None:
        """Take the bell down. The worker's number may belong to another as soon as its row is gone, so
        this comes first."""
        if self._fd >= 0:
            self.stop_listening()
            self._path.unlink(missing_ok=True)
        self.forked()

    def forked(self) -> None:
        """Close the files, and leave the bell to the parent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Ringer:
    """Rings the bells of others."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._board: _Board | None = None
        self._next = 0

    def anybody_waits(self) -> bool:
        """Whether there is anybody to be woken, whatever for."""
        board = self._board or self._find_board()
        return board is not None and board.anybody_waits()

    def ring(self, queues: Collection[int], count: int) -> None:
        """Wake up to `count` workers that wait for one of these queues."""
        board = self._board or self._find_board()
        waiting = board.waiting() if board is not None else []
        if board is None or not waiting:
            return
        for slot in self._turn(waiting):
            if count <= 0:
                break
            if not board.wants(slot, queues):
                continue
            board.write_flag(slot, False)
            if _ring(f"{self._folder}/{slot + FIRST_WORKER}.bell"):
                count -= 1

    def _find_board(self) -> _Board | None:
        """The board; None as long as there hasn't been any worker."""
        with contextlib.suppress(FileNotFoundError):
            self._board = _Board(self._folder)
        return self._board

    def _turn(self, slots: list[int]) -> list[int]:
        """Begin with another each time, so that none is always the last."""
        self._next = (self._next + 1) % len(slots)
        return slots[self._next :] + slots[: self._next]


def _ring(path: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # nobody has it open any more
            return False
        raise
    try:
        os.write(fd, b"!")
    except BlockingIOError:  # it has been rung thousands of times
        pass
    except BrokenPipeError:
        return False
    finally:
        os.close(fd)
    return True


_BOARD_SIZE = MAX_WORKERS * (1 + _MASK)


def set_up(folder: Path) -> None:
    """Make the folder and the file of flags. Only for whoever holds the writers' lock."""
    folder.mkdir(exist_ok=True)
    path = folder / "idle"
    if not path.exists():
        made = folder / "idle.new"
        made.write_bytes(bytes(_BOARD_SIZE))  # in full, because memory can't say that the disk is full
        made.rename(path)


class _Board:
    """The file of flags: a byte for each worker that says whether it waits, then the queues of each.

    It is mapped into memory: every send looks at it.
    """

    def __init__(self, folder: Path | str) -> None:
        fd = os.open(f"{folder}/idle", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._bytes = mmap.mmap(fd, _BOARD_SIZE)
        finally:
            os.close(fd)

    def anybody_waits(self) -> bool:
        return self._bytes.find(b"\1", 0, MAX_WORKERS) >= 0

    def waiting(self) -> list[int]:
        flags, slots = self._bytes, []
        slot = flags.find(b"\1", 0, MAX_WORKERS)
        while slot >= 0:
            slots.append(slot)
            slot = flags.find(b"\1", slot + 1, MAX_WORKERS)
        return slots

    def write_flag(self, slot: int, waits: bool) -> None:
        self._bytes[slot] = waits

    def wants(self, slot: int, queues: Collection[int]) -> bool:
        start = MAX_WORKERS + slot * _MASK
        return any(self._bytes[start + queue // 8 % _MASK] & 1 << queue % 8 for queue in queues)

    def write_mask(self, slot: int, queues: Iterable[int]) -> None:
        mask = bytearray(_MASK)
        for queue in queues:
            mask[queue // 8 % _MASK] |= 1 << queue % 8
        start = MAX_WORKERS + slot * _MASK
        self._bytes[start : start + _MASK] = mask
