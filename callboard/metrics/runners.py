"""The numbers of the processes in which isolated jobs run, in memory that the worker's supervisor sees.

They descend from a worker process by way of another program's start, so the memory that forks share doesn't reach
them. Theirs is a file without a name: the worker process hands it to each with the place that it may write to. A place
is free; the worker process takes it for a runner, and leaves it when that has ended for certain; the supervisor adds up
what lies there, and frees it. So each step is one byte, with one process to write it, and a kill at any moment neither
loses a number nor counts it twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from callboard.loggers import get_logger
from callboard.metrics.blocks import Block
from callboard.metrics.jobs import all_metrics
from callboard.metrics.values import share_values

log = get_logger(__name__)

#: What a process has room for: some 600 actors, times their priorities; some 5,000 numbers of the application's.
JOB_BYTES, VALUE_BYTES = 1 << 18, 1 << 20
_BYTES = JOB_BYTES + VALUE_BYTES

_FREE, _TAKEN, _LEFT = 0, 1, 2
#: Seconds that a runner waits for a place, if the supervisor is slow to free one.
_PATIENCE = 5.0
_AGAIN = 0.01


class RunnerMemory:
    """The places of all worker processes. Made before they are forked, on Linux.

    Args:
        blocks: How many worker processes there can be at once.
        places: How many runners each of them can have at once, those that have just ended included.

    Raises:
        OSError: If there can't be such a file.
    """

    def __init__(self, blocks: int, places: int) -> None:
        self.places = places
        self.states = mmap.mmap(-1, blocks * places)
        self.file = _file(blocks * places * _BYTES)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def of(self, block: int) -> RunnerPlaces:
        """The places of a worker process."""
        return RunnerPlaces(self, block * self.places)

    def ring(self) -> None:
        """Have the supervisor look."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._bell, 1)

    # -- for the supervisor ------------------------------------------------------------------------------

    @property
    def bell(self) -> int:
        """A file that can be read when places are to be freed soon."""
        return self._bell

    def answer(self) -> None:
        """Take note of the bell."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def taken(self) -> list[int]:
        """The places of runners that live, as far as is known."""
        return [place for place, state in enumerate(self.states[:]) if state == _TAKEN]

    def left(self) -> list[int]:
        """The places of runners that have ended."""
        found, place = [], -1
        while (place := self.states.find(bytes([_LEFT]), place + 1)) >= 0:
            found.append(place)
        return found

    def used_by(self, block: int) -> list[int]:
        """The places that a worker process has used, which has ended, and its runners with it."""
        first = block * self.places
        return [place for place in range(first, first + self.places) if self.states[place] != _FREE]

    @contextmanager
    def opened(self, place: int) -> Iterator[tuple[Block, Block]]:
        """The numbers of jobs, and those of the application's own metrics."""
        with _mapped(self.file, place) as memory:
            yield _blocks_in(memory)

    def free(self, place: int) -> None:
        """Let the place be another's; its blocks are empty."""
        self.states[place] = _FREE


class RunnerPlaces:
    """The places of one worker process, as that process has them."""

    def __init__(self, memory: RunnerMemory, first: int) -> None:
        self._memory = memory
        self._first = first
        self._next = 0
        self._lock = threading.Lock()
        self._warned = False

    @property
    def file(self) -> int:
        """The file that they are in."""
        return self._memory.file

    def take(self) -> int | None:
        """A place for a runner; None if none becomes free in time."""
        end = time.monotonic() + _PATIENCE
        while (place := self._take()) is None:
            if time.monotonic() > end:
                self._warn()
                return None
            self._memory.ring()
            time.sleep(_AGAIN)
        return place

    def _take(self) -> int | None:
        """The one that was freed first, or nearly."""
        count = self._memory.places
        with self._lock:
            for step in range(count):
                place = self._first + (self._next + step) % count
                if self._memory.states[place] == _FREE:
                    self._next = (self._next + step + 1) % count
                    self._memory.states[place] = _TAKEN
                    return place
        return None

    def leave(self, place: int) -> None:
        """Its runner has ended. Once a place."""
        memory = self._memory
        memory.states[place] = _LEFT
        mine = memory.states[self._first : self._first + memory.places]
        if mine.count(_FREE) < memory.places // 2:
            memory.ring()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no room for the metrics of more isolated jobs at once, some aren't counted")


def _file(size: int) -> int:
    """A file that takes as much memory as is written to it.

    A job that writes to every open file of its process, or cuts them all short, harms nobody's numbers: the file stands
    at its end, and can neither grow nor shrink.
    """
    file = os.memfd_create("callboard-metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    os.lseek(file, 0, os.SEEK_END)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


@contextmanager
def _mapped(file: int, place: int) -> Iterator[mmap.mmap]:
    memory = mmap.mmap(file, _BYTES, offset=place * _BYTES)
    try:
        yield memory
    finally:
        memory.close()


def _blocks_in(memory: mmap.mmap) -> tuple[Block, Block]:
    return Block(memory, 0, JOB_BYTES), Block(memory, JOB_BYTES, VALUE_BYTES)


#: Where runners of this worker process keep their numbers; None if nobody looks.
_offered: RunnerPlaces | None = None
#: Where this runner keeps those of jobs.
_jobs: Block | None = None


def offer(places: RunnerPlaces | None) -> None:
    """In a worker process: its runners may have these."""
    global _offered
    _offered = places


def offered() -> RunnerPlaces | None:
    """What this process can offer its runners."""
    return _offered


def join(file: int, place: int) -> None:
    """In a runner: keep this process' numbers in its place."""
    global _jobs
    _jobs, values = _blocks_in(mmap.mmap(file, _BYTES, offset=place * _BYTES))
    share_values(values)
    join_loaded()


def join_loaded() -> None:
    """In a runner that may have loaded the application since: keep its numbers there, too."""
    if _jobs is not None:
        for metrics in all_metrics():
            if not metrics.is_shared:
                metrics.share(_jobs)
