"""The ledger of ticks: each that was due is a job that ran to its end, or there is a line that says why not; and
none is two jobs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from callboard.store.base import TICKS_KEPT, Fate, Store
from tests.lines import whole_lines

#: What became of a tick of which there is a job.
_SENT = (Fate.ON_TIME, Fate.CAUGHT_UP)


class TickLedger:
    """Of schedules that are due every second, from when it is made.

    Args:
        folder: Where their jobs note which messages they are.
        schedules: Their names. All have begun.
        store: Where they are served.
    """

    def __init__(self, folder: Path, schedules: Iterable[str], store: Store) -> None:
        states = store.schedules()
        self._folder = folder
        self._first = {name: int(states[name].until or 0) + 1 for name in schedules}
        self._last = 0
        self._told: set[str] = set()

    @staticmethod
    def have_begun(schedules: Iterable[str], store: Store) -> bool:
        """Whether all schedules are served by somebody."""
        states = store.schedules()
        return all(name in states and states[name].until is not None for name in schedules)

    def close(self) -> None:
        """No tick from now on counts."""
        self._last = int(time.time())

    def is_served(self, store: Store) -> bool:
        """Whether all ticks that count are dealt with; what is told of them is read."""
        states = store.schedules()
        if any((states[name].until or 0) < self._last for name in self._first):
            return False
        for name in self._first:
            for tick in store.ticks(name, limit=TICKS_KEPT):
                if tick.fate not in _SENT and tick.reason:
                    self._told |= _ids(name, int(tick.first or tick.due), int(tick.due))
        return True

    def due(self) -> set[str]:
        """The jobs that there should be."""
        return {job for name, first in self._first.items() for job in _ids(name, first, self._last)}

    def told(self) -> set[str]:
        """Those of them of which it is told why there is none."""
        return self._told & self.due()

    def missed(self, done: set[str]) -> set[str]:
        """Those that neither have come to their end nor are told of."""
        return self.due() - self._told - done

    def doubled(self) -> set[str]:
        """Those of which two messages ran."""
        messages: dict[str, set[str]] = defaultdict(set)
        path = self._folder / "ticks"
        for line in whole_lines(path):
            job, made = line.split()
            messages[job].add(made)
        return {job for job, made in messages.items() if len(made) > 1}


def _ids(name: str, first: int, last: int) -> set[str]:
    return {f"{name}:{second}" for second in range(first, last + 1)}
