"""Lua scripts, as Redis knows them: by the SHA-1 of their text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources


@dataclass(slots=True, frozen=True)
class Script:
    """One script."""

    text: bytes
    sha: bytes


def assemble(package: str, parts: Sequence[str], *, flags: str = "") -> Script:
    """A script made of files in a package's folder `lua`.

    Args:
        package: The package.
        parts: The files' names, without '.lua': what is shared comes before what uses it.
        flags: 'allow-oom' if it may run while Redis is out of memory, 'no-writes' if it changes nothing.
    """
    folder = resources.files(package) / "lua"
    head = f"#!lua flags={flags}" if flags else "#!lua"
    text = "\n".join(
        [head, *((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)]
    ).encode()
    return Script(text, hashlib.sha1(text).hexdigest().encode())  # noqa: S324 - it is how Redis names them
