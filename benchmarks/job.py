"""The job that every system runs, and how its runs are counted.

The payload is a dict of about 200 bytes, the body is empty: it only counts. Each thread of each worker
counts in a slot of its own of a shared file, so that counting takes no lock. A payload with a time in it
also leaves there how much later it ran.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

SLOTS = 256
LATENCIES = 1024

_NOTES = ".notes"

_number = struct.Struct("q")
_seconds = struct.Struct("d")
_SLOT = 8 + LATENCIES * 8  # a count, then latencies
_SIZE = 8 + SLOTS * _SLOT  # how many slots are taken, then the slots


def payload(sent: float = 0.0) -> dict[str, Any]:
    """About 200 bytes of JSON."""
    return {
        "to": "ada@example.org",
        "template": "welcome",
        "reference": "0123456789abcdef" * 6,
        "amount": 1234.5,
        "sent": sent,
        "lines": [1, 2, 3],
    }


class Counter:
    """The counts of all workers of one measurement, in a file that they share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def total(self) -> int:
        """How many jobs have run."""
        return sum(_number.unpack_from(self._map, 8 + n * _SLOT)[0] for n in range(self._taken()))

    def latencies(self) -> list[float]:
        """Seconds from the time in the payload to the start, of the jobs that had one; early ones are negative."""
        found: list[float] = []
        for n in range(self._taken()):
            offset = 8 + n * _SLOT
            count = min(_number.unpack_from(self._map, offset)[0], LATENCIES)
            found.extend(_seconds.unpack_from(self._map, offset + 8 + i * 8)[0] for i in range(count))
        return sorted(latency for latency in found if latency)

    def by_process(self) -> dict[int, list[float]]:
        """What `note` was called with, by the process that did."""
        found: dict[int, list[float]] = {}
        for line in self._notes().splitlines():
            process, _, seconds = line.partition(" ")
            found.setdefault(int(process), []).append(float(seconds))
        return found

    def _notes(self) -> str:
        path = Path(f"{self.path}{_NOTES}")
        return path.read_text() if path.exists() else ""

    def _taken(self) -> int:
        taken: int = _number.unpack_from(self._map, 0)[0]
        return taken


class _Slot(threading.local):
    """This thread's slot."""

    def __init__(self) -> None:
        with open(os.environ["BENCH_COUNTER"], "r+b") as file:  # noqa: PTH123  once a thread
            self._map = mmap.mmap(file.fileno(), 0)
            fcntl.flock(file, fcntl.LOCK_EX)
            taken = _number.unpack_from(self._map, 0)[0]
            _number.pack_into(self._map, 0, taken + 1)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing isn't enough: the map holds a copy of the descriptor
        self._offset = 8 + taken * _SLOT
        self._count = 0

    def count(self, sent: float) -> None:
        if sent:
            latency = time.time() - sent
            _seconds.pack_into(self._map, self._offset + 8 + (self._count % LATENCIES) * 8, latency)
        self._count += 1
        _number.pack_into(self._map, self._offset, self._count)


_slots: dict[int, _Slot] = {}  # by process: a fork starts anew


def run(job: dict[str, Any]) -> None:
    """The body."""
    slot = _slots.get(os.getpid())
    if slot is None:
        slot = _slots.setdefault(os.getpid(), _Slot())
    slot.count(job["sent"])


def note(seconds: float) -> None:
    """Count a job that took so long, and say in whose process."""
    # One write of one short line, appended: lines of several processes don't mix.
    with open(os.environ["BENCH_COUNTER"] + _NOTES, "a") as file:  # noqa: PTH123  the environment has a string
        file.write(f"{os.getpid()} {seconds}\n")
    run({"sent": 0.0})
