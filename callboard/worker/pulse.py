"""Whether a worker process' consumers live, by what they get done and not by the process being there.

Each process counts, in memory shared with its supervisor, how often its claiming thread has gone round, how many
messages it has claimed, and how often its main thread, which has nothing else to do, was awake. The supervisor
looks every second.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

_PLACES = 4  # of a process; the last is free
_TURNS, _CLAIMED, _BEATS = range(3)
#: A look that comes late counts as no more than so many seconds: perhaps the supervisor itself was frozen.
_LONGEST_LOOK = 2.0


class Pulse:
    """The counters of one process. Each has one thread that counts."""

    def __init__(self, counters: memoryview[int]) -> None:
        self._counters = counters

    def turned(self, claimed: int) -> None:
        """The claiming thread has gone round, and has claimed so many messages."""
        self._counters[_TURNS] += 1
        if claimed:
            self._counters[_CLAIMED] += claimed

    def beat(self) -> None:
        """The main thread is awake."""
        self._counters[_BEATS] += 1

    def read(self) -> tuple[int, ...]:
        """All counters."""
        return tuple(self._counters)

    def clear(self) -> None:
        """Make it ready for another process."""
        for place in range(_PLACES):
            self._counters[place] = 0


class PulseMemory:
    """The pulses of several processes. Made before they are forked."""

    def __init__(self, processes: int) -> None:
        self._memory = mmap.mmap(-1, processes * _PLACES * 8)

    def of(self, block: int) -> Pulse:
        """The pulse of the process that was given this block."""
        counters = memoryview(self._memory).cast("Q")
        return Pulse(counters[block * _PLACES : (block + 1) * _PLACES])


@dataclass(slots=True)
class _Still:
    """For how long a counter hasn't moved, as far as somebody has looked."""

    value: int = 0
    seconds: float = 0.0

    def look(self, value: int, elapsed: float) -> None:
        if value == self.value:
            self.seconds += elapsed
        else:
            self.value, self.seconds = value, 0.0


@dataclass(slots=True)
class Progress:
    """What the supervisor has seen of one process.

    Attributes:
        turns: For how long the claiming thread has stood still.
        idle: For how long nothing was claimed, although messages waited and a thread was free.
        beats: For how long the main thread has stood still.
    """

    turns: _Still = field(default_factory=_Still)
    idle: _Still = field(default_factory=_Still)
    beats: _Still = field(default_factory=_Still)


class StallDetector:
    """Judges the pulses.

    A process has stalled if for so long it has claimed nothing, although messages waited in its queues that aren't
    paused, and it had a free thread. If its claiming thread stands still as well, it should be replaced: unless the
    main thread stands still too, for then a job keeps Python's lock, and the job may come to its end.

    Args:
        after: Seconds.
        clock: A clock that is monotonic.
    """

    def __init__(self, after: float, clock: Callable[[], float]) -> None:
        self._after = after
        self._clock = clock
        self._looked = clock()
        self._progress: dict[int, Progress] = {}

    def elapsed(self) -> float:
        """Seconds since the last look, this being the next."""
        before, self._looked = self._looked, self._clock()
        return min(self._looked - before, _LONGEST_LOOK)

    def look(self, pid: int, pulse: Pulse, elapsed: float, *, has_work: bool) -> None:
        """Look at a process.

        Args:
            pid: Which.
            pulse: Its counters.
            elapsed: Seconds since the last look at all of them.
            has_work: Whether messages wait that it could claim, for all that is known.
        """
        progress = self._progress.setdefault(pid, Progress())
        turns, claimed, beats, _ = pulse.read()
        progress.turns.look(turns, elapsed)
        progress.beats.look(beats, elapsed)
        progress.idle.look(claimed, elapsed if has_work else 0.0)
        if not has_work:
            progress.idle.seconds = 0.0

    def forget(self, pid: int) -> None:
        """A process has ended."""
        self._progress.pop(pid, None)

    def consumes(self, pid: int) -> bool:
        """Whether its claiming thread goes round."""
        progress = self._progress.get(pid)
        return progress is not None and progress.turns.value > 0 and progress.turns.seconds < self._after / 2

    def has_stalled(self, pid: int) -> bool:
        """Whether it claims nothing although messages wait."""
        progress = self._progress.get(pid)
        return progress is not None and progress.idle.seconds >= self._after

    def needs_replacing(self, pid: int, *, runs_jobs: bool) -> bool:
        """Whether it has stalled, and won't recover by itself."""
        progress = self._progress.get(pid)
        if progress is None or not self.has_stalled(pid) or progress.turns.seconds < self._after:
            return False
        return progress.beats.seconds < self._after / 2 or not runs_jobs
