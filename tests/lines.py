"""Reading what other processes write, line by line, while they do."""

from __future__ import annotations

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """The whole lines of a file, if it is there. Of one that is just being written, a part may be read."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
