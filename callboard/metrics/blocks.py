"""Numbers of several processes in memory that all of them share, and that outlives each.

A supervisor makes the memory before it forks. A process has one block of it, of a fixed size, to which only it
writes: entries of a key and some floats, one after the other. An entry is announced when it is complete, and stays
where it is, so that whoever reads needs no lock: what it reads of a process is at most a job old. When a process
has died, its last numbers are still there.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator

_HEAD = struct.Struct("=Q")  # how many bytes of the block are taken, this one included
_ENTRY = struct.Struct("=II")  # the length of the key, how many floats
_MOST_KEY = 8192
_REMOVE: int | None = getattr(mmap, "MADV_REMOVE", None)


class Block:
    """The numbers of one process.

    Args:
        memory: All blocks.
        start: Where this one begins.
        size: In bytes.
    """

    def __init__(self, memory: mmap.mmap, start: int, size: int) -> None:
        self._memory = memory
        self._start = start
        self._size = size
        self._lock = threading.Lock()

    def add(self, key: bytes, count: int) -> memoryview[float] | None:
        """Add an entry of so many zeros: its floats, to be written to. None if it finds no room."""
        length = -(-len(key) // 8) * 8
        with self._lock:
            used = self._used()
            first = used + _ENTRY.size + length
            end = first + 8 * count
            if end > self._size or len(key) > _MOST_KEY:
                return None
            at = self._start + used
            _ENTRY.pack_into(self._memory, at, len(key), count)
            self._memory[at + _ENTRY.size : at + _ENTRY.size + len(key)] = key
            _HEAD.pack_into(self._memory, self._start, end)
        return memoryview(self._memory)[self._start + first : self._start + end].cast("d")

    def read(self) -> Iterator[tuple[bytes, tuple[float, ...]]]:
        """The entries, as they are now."""
        at, end = self._start + _HEAD.size, self._start + min(self._used(), self._size)
        while at < end:
            length, count = _ENTRY.unpack_from(self._memory, at)
            at += _ENTRY.size
            key = self._memory[at : at + length]
            at += -(-length // 8) * 8
            yield key, struct.unpack_from(f"={count}d", self._memory, at)
            at += 8 * count

    def clear(self) -> None:
        """Make it empty, for another process, and give its memory back to the system."""
        if _REMOVE is not None:
            try:
                self._memory.madvise(_REMOVE, self._start, self._size)
            except OSError:
                pass
            else:
                return
        self._memory[self._start : self._start + self._size] = bytes(self._size)

    def _used(self) -> int:
        used: int = _HEAD.unpack_from(self._memory, self._start)[0]
        return used or _HEAD.size


class BlockMemory:
    """The blocks of several processes. Only what is written to takes real memory.

    Args:
        blocks: How many.
        size: Of each, in bytes; rounded up to whole pages.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, blocks * self._size)
        self._count = blocks

    def of(self, number: int) -> Block:
        """A block."""
        return Block(self._memory, number * self._size, self._size)

    def __iter__(self) -> Iterator[Block]:
        return (self.of(number) for number in range(self._count))
