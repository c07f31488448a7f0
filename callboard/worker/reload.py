"""Notices when an application's files change: for `callboard dev`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

#: What jobs read: an application may read it once. Everywhere else only code counts, for jobs may write there.
_CONTENT = "content"
_SUFFIXES = (".py", ".toml")
_SKIPPED = frozenset({"__pycache__", "node_modules", "var", "build", "dist", "site-packages"})


class Watcher:
    """Looks at the files of some folders. Costs a few milliseconds a look, and needs no thread.

    Args:
        folders: With all that is in them but hidden folders, environments and caches.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [str(folder) for folder in folders]
        self._seen = self._look()
        self._settling: set[str] = set()

    def changed(self) -> list[Path]:
        """The files that were changed, added or removed: told once, when a look has found nothing new, so that
        a save of many files is one change."""
        now = self._look()
        fresh = {path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path)}
        self._seen = now
        if fresh or not self._settling:
            self._settling |= fresh
            return []
        changed, self._settling = self._settling, set()
        return sorted(Path(path) for path in changed)

    def _look(self) -> dict[str, tuple[int, int]]:
        return {path: mark for folder in self._folders for path, mark in _files(folder)}


def _files(folder: str, *, content: bool = False) -> Iterator[tuple[str, tuple[int, int]]]:
    """The watched files below a folder, each with its time of change and size."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _SKIPPED:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):  # noqa: PTH110, PTH118  half the time of a Path
                        yield from _files(entry.path, content=content or entry.name == _CONTENT)
                elif content or entry.name.endswith(_SUFFIXES):
                    found = entry.stat()
                    yield entry.path, (found.st_mtime_ns, found.st_size)
    except OSError:  # removed while we looked
        return
