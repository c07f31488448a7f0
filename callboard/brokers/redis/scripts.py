"""The Lua scripts, as Redis knows them: by the SHA-1 of their text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

# A put is refused while Redis is out of memory; whatever makes room, or moves a job on, never is.
_FLAGS = {"put": ""}
_OF_CLAIMS = frozenset({"enter", "claim", "leave"})
_ALLOWED = "flags=allow-oom"


@dataclass(slots=True, frozen=True)
class Script:
    """One script."""

    text: bytes
    sha: bytes


@cache
def script(name: str) -> Script:
    """A script by the name of its file; 'exchange' is 'put' where every message replaces another."""
    folder = resources.files("callboard.brokers.redis") / "lua"
    file = "put" if name == "exchange" else name
    shared = ("common", "claims") if name in _OF_CLAIMS else ("common",)
    parts = [f"#!lua {_FLAGS.get(name, _ALLOWED)}".rstrip()]
    parts += [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in (*shared, file)]
    text = "\n".join(parts).encode()
    return Script(text, hashlib.sha1(text).hexdigest().encode())  # noqa: S324 - it is how Redis names them
