"""What each thread of each worker process runs now, in memory that outlives the process.

The supervisor makes the memory and every process that it starts shares it. A thread writes the id of its
job there, which costs under a microsecond; when a process dies, the supervisor reads what it ran.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass

#: One byte for the length, then the id, of at most 128, then the start, the number of those that ended, and a lease:
#: the start of the run that has it, and until when.
_SIZE = 176
_STARTED_AT, _ENDED_AT, _LEASED_AT, _UNTIL_AT = 136, 144, 152, 160
_STARTED = struct.Struct("<d")  # monotonic seconds, which all processes of a machine share
_ENDED = struct.Struct("<Q")
_LEASE = struct.Struct("<dd")
#: What stands for the end of a lease that was lost.
LOST = -1.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A run, as its slot tells of it.

    Attributes:
        job_id: What runs.
        started: Since when, in monotonic seconds.
        lease: Until when it has its job's lease, in monotonic seconds; `LOST`; or None if it never had it.
        offset: Where the slot is.
    """

    job_id: str
    started: float
    lease: float | None
    offset: int


class Slots:
    """The slots of one process, a thread each."""

    def __init__(self, memory: mmap.mmap, first: int, threads: int) -> None:
        self._memory = memory
        self._offsets = [(first + n) * _SIZE for n in range(threads)]
        self._ended = [0] * threads  # by this process: each thread counts its own

    def start(self, thread: int, job_id: str) -> None:
        """A thread starts a job."""
        memory, offset = self._memory, self._offsets[thread]
        data = job_id.encode()
        memory[offset + 1 : offset + 1 + len(data)] = data
        _STARTED.pack_into(memory, offset + _STARTED_AT, time.monotonic())
        memory[offset] = len(data)

    def end(self, thread: int) -> None:
        """A thread is done with its job."""
        memory, offset = self._memory, self._offsets[thread]
        memory[offset] = 0
        self._ended[thread] += 1
        _ENDED.pack_into(memory, offset + _ENDED_AT, self._ended[thread])

    def running(self) -> list[str]:
        """The ids of the jobs that run, or ran when the process died."""
        memory = self._memory
        lengths = [(offset + 1, memory[offset]) for offset in self._offsets]
        return [memory[start : start + n].decode(errors="replace") for start, n in lengths if n]

    def runs(self) -> list[tuple[str, float]]:
        """The same, each with its start in monotonic seconds."""
        starts = [
            _STARTED.unpack_from(self._memory, offset + _STARTED_AT)[0]
            for offset in self._offsets
            if self._memory[offset]
        ]
        return list(zip(self.running(), starts, strict=False))

    def run_of(self, thread: int) -> Slot | None:
        """What a thread runs."""
        return _run_at(self._memory, self._offsets[thread])

    def threads_that_lost(self) -> list[int]:
        """The threads whose runs have lost their leases."""
        runs = [(thread, _run_at(self._memory, offset)) for thread, offset in enumerate(self._offsets)]
        return [thread for thread, run in runs if run is not None and run.lease == LOST]

    def ended(self) -> int:
        """How many jobs have ended."""
        counts: list[int] = [_ENDED.unpack_from(self._memory, o + _ENDED_AT)[0] for o in self._offsets]
        return sum(counts)

    def is_running(self, job_id: str) -> bool:
        """Whether any thread of any process that shares this memory runs a job."""
        memory, data = self._memory, job_id.encode()
        found = memory.find(data, 0)
        while found >= 0:
            if found % _SIZE == 1 and memory[found - 1] == len(data):
                return True
            found = memory.find(data, found + 1)
        return False

    def clear(self) -> None:
        """Make them ready for another process."""
        for offset in self._offsets:
            self._memory[offset] = 0
            _ENDED.pack_into(self._memory, offset + _ENDED_AT, 0)


class SlotMemory:
    """The slots of several processes. Made before they are forked.

    Args:
        processes: How many there can be at once.
        threads: How many threads each has.
    """

    def __init__(self, processes: int, threads: int) -> None:
        self._threads = threads
        self._memory = mmap.mmap(-1, processes * threads * _SIZE)
        self._pids = memoryview(mmap.mmap(-1, processes * 4)).cast("I")

    def give(self, block: int, pid: int) -> None:
        """Note which process has a block; 0 for none."""
        self._pids[block] = pid

    def pids(self) -> list[int]:
        """The processes that have blocks."""
        return [pid for pid in self._pids if pid]

    def running(self) -> list[Slot]:
        """All that runs."""
        offsets = range(0, len(self._memory) // _SIZE * _SIZE, _SIZE)
        return [run for offset in offsets if (run := _run_at(self._memory, offset)) is not None]

    def set_lease(self, run: Slot, until: float) -> None:
        """Note until when a run has its job's lease, or that it has `LOST` it. No other run heeds it."""
        # Whose it is comes last, so that what another run reads before isn't taken for its own.
        _STARTED.pack_into(self._memory, run.offset + _UNTIL_AT, until)
        _STARTED.pack_into(self._memory, run.offset + _LEASED_AT, run.started)

    def of(self, block: int) -> Slots:
        """The slots of the process that was given this block."""
        return Slots(self._memory, block * self._threads, self._threads)


def _run_at(memory: mmap.mmap, offset: int) -> Slot | None:
    length = memory[offset]
    if not length:
        return None
    job_id = memory[offset + 1 : offset + 1 + length].decode(errors="replace")
    (started,) = _STARTED.unpack_from(memory, offset + _STARTED_AT)
    leased, until = _LEASE.unpack_from(memory, offset + _LEASED_AT)
    return Slot(job_id, started, until if leased == started else None, offset)
