"""How long jobs take in this worker, and so how many it should hold ready beside those that run."""

from __future__ import annotations

from collections.abc import Sequence

#: How many seconds of work wait in a worker beside what runs, and how many messages at most.
AHEAD_SECONDS = 0.05
AHEAD_MOST = 256

# RabbitMQ sends ahead for each queue by itself, and what comes in small portions costs it twice as much.
_AHEAD_A_QUEUE, _AHEAD_OF_ALL = 40, 1024

_UP, _DOWN = 0.1, 0.02  # what a job weighs that took longer, or less, than those before it


class Pace:
    """A running mean of how long jobs take.

    It rises faster than it falls: to hold too little costs a claim now and then, to hold too much keeps
    jobs from other workers that have a free thread.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.mean: float | None = None  # seconds; None until a job has ended

    def note(self, seconds: float) -> None:
        """A job has ended after so long. Called by every thread; that one may be lost does no harm."""
        mean = self.mean
        if mean is None:
            self.mean = seconds
        else:
            self.mean = mean + (seconds - mean) * (_UP if seconds > mean else _DOWN)

    def expect(self, running_for: Sequence[float]) -> float | None:
        """How many seconds a job is expected to take, given for how long the running ones have run.

        While a thread is free, or comes free now and then, the mean is as good as any guess. When all are
        held up, jobs take at least as long as the youngest of those that hold them.
        """
        if self.mean is None or len(running_for) < self._threads:
            return self.mean
        return max(self.mean, min(running_for))

    def ahead(self, expected: float | None) -> int:
        """How many jobs to hold ready: those of the next 50 ms. None before anything is known of them."""
        if expected is None:
            return 0
        return min(AHEAD_MOST, int(self._threads * AHEAD_SECONDS / max(expected, 1e-6)))


def budget(threads: int, queues: int) -> int:
    """How many messages a worker may hold, with those that run and those that its broker has sent ahead."""
    return threads + max(AHEAD_MOST, min(queues * _AHEAD_A_QUEUE, _AHEAD_OF_ALL))
