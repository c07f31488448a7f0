"""The job that every system runs, and how its runs are counted.

The payload is a dict of about 200 bytes, the body is empty: it only counts. Each thread of each worker
counts in a slot of its own of a shared file, so that counting takes no lock. A payload with a time in it
also leaves its latency there.
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
        """Seconds from send to start, of the jobs that had a time in their payload."""
        found: list[float] = []
        for n in range(self._taken()):
            offset = 8 + n * _SLOT
            count = min(_number.unpack_from(self._map, offset)[0], LATENCIES)
            found.extend(_seconds.unpack_from(self._map, offset + 8 + i * 8)[0] for i in range(count))
        return sorted(latency for latency in found if latency)

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
            latency = max(1e-9, time.time() - sent)
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
