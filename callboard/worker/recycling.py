"""When a worker process has done enough, and another takes its place: against memory that code of others never gives
back.

The successor starts first. Then the old one claims nothing more, gives back what it hasn't started, and its running
jobs have the grace of every stop. One process at a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from callboard.errors import SettingsError

#: Seconds that a process lives at least: one that is too large from the start doesn't make the others do nothing else
#: than start.
LEAST_LIFE = 2.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Enough:
    """How much a worker process may do.

    Attributes:
        jobs: After so many it is replaced, or some more: it is looked at every second.
        memory: Bytes of memory above which it is, as resident in the machine.
    """

    jobs: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("jobs", self.jobs), ("memory", self.memory)):
            if value is not None and value < 1:
                raise ValueError(f"a worker process' greatest {name} must be above zero, not {value}")
        if self.memory is not None and resident_memory(os.getpid()) is None:
            raise SettingsError("--max-memory needs Linux's /proc, which isn't there")

    def __bool__(self) -> bool:
        return self.jobs is not None or self.memory is not None

    def reason(self, pid: int, jobs: int) -> str | None:
        """Why a process that has done so many jobs should be replaced; None if it shouldn't."""
        if self.jobs is not None and jobs >= self.jobs:
            return f"it has done {jobs:,} jobs, of {self.jobs:,} that it may"
        if self.memory is not None and (used := resident_memory(pid) or 0) > self.memory:
            return f"it uses {used // _MIB:,} MiB, of {self.memory // _MIB:,} that it may"
        return None


def resident_memory(pid: int) -> int | None:
    """Bytes that a process has in the machine's memory, with what it shares; None where nobody knows."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
