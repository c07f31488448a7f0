"""The store's scripts, by name."""

from __future__ import annotations

from functools import cache

from callboard.redis.scripts import Script, assemble

_SHARED = {
    "value": ("expiring",),
    "keep": ("expiring",),
    "claim": ("expiring",),
    "release": ("expiring",),
    "move": ("expiring",),
    "reserve": ("expiring",),
    "place": ("expiring",),
    "write": ("records",),
    "search": ("records", "places"),
    "remove": ("records", "places"),
    "count": ("records",),
}
# What only reads is answered by a Redis that takes no changes, too.
_READING = frozenset({"value", "control", "workers", "search", "count"})
# What grows is refused while Redis is out of memory. What makes room, or is asked of workers, never is.
_GROWING = frozenset({"write", "keep", "audit", "tick"})


@cache
def script(name: str) -> Script:
    """A script by the name of its file."""
    flags = "no-writes" if name in _READING else "" if name in _GROWING else "allow-oom"
    return assemble("callboard.store.redis", ("common", *_SHARED.get(name, ()), name), flags=flags)
