"""How an actor's jobs are kept apart: `@actor(isolated=True)` or `@actor(isolated=Isolation(memory="2GiB"))`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from callboard.errors import DeclarationError

_UNITS = {"": 1, "K": 1_000, "M": 1_000**2, "G": 1_000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How jobs run in a process of their own.

    Attributes:
        memory: How much of it a run may use, in bytes or as '2GiB', '500MB'; without it, what the machine has.
        max_jobs: The process is replaced after so many jobs; 1 gives each job a fresh one.

    Raises:
        DeclarationError: If one of them can't be.
    """

    memory: int | str | None = None
    max_jobs: int = 1_000

    def __post_init__(self) -> None:
        if isinstance(self.max_jobs, bool) or not isinstance(self.max_jobs, int) or self.max_jobs < 1:
            raise DeclarationError(f"max_jobs={self.max_jobs!r} must be a number from 1")
        if self.memory is not None and not _bytes_of(self.memory):
            raise DeclarationError(f"memory={self.memory!r} must be a size, as '2GiB', '500MB' or bytes")

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory is None else _bytes_of(self.memory)


def isolation_of(option: Any) -> Isolation | None:
    """What an actor's `isolated` says; None if its jobs run in the worker's own process.

    Raises:
        DeclarationError: If it says neither.
    """
    if option is None or option is False:
        return None
    if option is True:
        return Isolation()
    if isinstance(option, Isolation):
        return option
    raise DeclarationError(
        f"isolated={option!r} must be True, False or an Isolation, as Isolation(memory='2GiB')"
    )


def _bytes_of(size: int | str) -> int:
    """A size in bytes; 0 if it is none."""
    if isinstance(size, int) and not isinstance(size, bool):
        return max(0, size)
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
