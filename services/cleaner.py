"""Old files removed from storage, only ever below a prefix.

    cleaner.clean("generated/", timedelta(hours=24))

Safe to run twice, and beside writers: a file that was written anew meanwhile is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from callboard.errors import Permanent
from services import storage
from services.storage import ObjectNotFound, Storage


class InvalidCleaning(Permanent):
    """A prefix that would empty the storage, or an age that isn't one. Nothing was deleted."""


@dataclass(frozen=True, slots=True)
class CleanReport:
    """How many files were deleted and kept below the prefix, and the bytes that the deleted ones held."""

    deleted: int
    kept: int
    bytes: int


def clean(
    prefix: str,
    older_than: timedelta,
    *,
    now: datetime | None = None,
    progress: Callable[[int], None] = lambda files: None,
    within: Storage | None = None,
) -> CleanReport:
    """Delete what lies in the folder `prefix` and was last written more than `older_than` ago.

    `now` is an aware time, the present by default. `progress` is called with the number of files looked at;
    what it raises ends the cleaning. `within` is the storage, the default one if it isn't given. Leftovers of
    killed writers, which lie under no key, are removed too.

    Raises:
        InvalidCleaning: the prefix is empty, or `older_than` isn't positive.
        InvalidKey: the prefix is no plain folder.
        StorageUnavailable: it can't be read or written just now.
    """
    if not prefix.strip("/ "):
        raise InvalidCleaning("a cleaning needs the folder to clean: the empty prefix is the whole storage")
    if older_than <= timedelta(0):
        raise InvalidCleaning(f"files are cleaned when they are older than some time, not {older_than}")
    storage.check_prefix(prefix)
    files = within or storage.default()
    before = (now or datetime.now(UTC)) - older_than
    deleted = kept = freed = 0
    for seen, file in enumerate(files.list(prefix), start=1):
        if file.modified < before and _delete_unless_renewed(files, file.key, before):
            deleted += 1
            freed += file.size
        else:
            kept += 1
        progress(seen)
    files.sweep()
    return CleanReport(deleted, kept, freed)


def _delete_unless_renewed(files: Storage, key: str, before: datetime) -> bool:
    """The listing may be a while old: look again right before."""
    try:
        return files.stat(key).modified < before and files.delete(key)
    except ObjectNotFound:
        return False
