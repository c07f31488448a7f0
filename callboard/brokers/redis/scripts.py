"""The driver's scripts, by name."""

from __future__ import annotations

from functools import cache

from callboard.redis.scripts import Script, assemble

_OF_CLAIMS = frozenset({"enter", "claim", "leave", "bury"})


@cache
def script(name: str) -> Script:
    """A script by the name of its file; 'exchange' is 'put' where every message replaces another."""
    file = "put" if name == "exchange" else name
    shared = ("common", "claims") if name in _OF_CLAIMS else ("common",)
    # A put is refused while Redis is out of memory; whatever makes room, or moves a job on, never is.
    return assemble("callboard.brokers.redis", (*shared, file), flags="" if name == "put" else "allow-oom")
