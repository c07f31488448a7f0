"""What every storage can do, and how it fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from callboard.errors import CallboardError, Permanent

CHUNK_BYTES = 256 * 1024


class ObjectNotFound(Permanent):
    """There is no object under this key."""

    def __init__(self, key: str, where: str) -> None:
        super().__init__(f"there is no object '{key}' in {where}")
        self.key = key


class ObjectTooLarge(Permanent):
    """The object is larger than its reader accepts."""

    def __init__(self, key: str, *, size: int, limit: int) -> None:
        super().__init__(f"'{key}' has {size:,} bytes, over the limit of {limit:,}")
        self.key = key


class StorageUnavailable(CallboardError):
    """The storage can't be read or written just now; the message says which key and why."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it: its size in bytes, and when it was last written (aware, UTC)."""

    key: str
    size: int
    modified: datetime


class Writer(Protocol):
    """Takes the bytes of an object that isn't visible yet."""

    def write(self, data: bytes, /) -> int: ...


class Storage(ABC):
    """Objects under keys like `reports/2026/may.csv`. An object appears whole or not at all.

    Every method raises `InvalidKey` for a key that isn't plain and relative, and `StorageUnavailable` when
    the disk or the service refuses.
    """

    @abstractmethod
    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        """Stream an object, which appears when the block ends, in place of an older one.

        If the block raises, nothing appears and the older one stays.
        """

    def put(self, key: str, data: bytes | Iterable[bytes]) -> int:
        """Store `data`, whole or in chunks, and return its size in bytes."""
        with self.open_write(key) as out:
            if isinstance(data, bytes):
                return out.write(data)
            return sum(out.write(chunk) for chunk in data)

    def read(self, key: str, *, limit: int | None = None) -> bytes:
        """The whole object.

        Raises:
            ObjectNotFound: there is none.
            ObjectTooLarge: it has more than `limit` bytes.
        """
        if limit is None:
            return b"".join(self.stream(key))
        if (size := self.stat(key).size) > limit:
            raise ObjectTooLarge(key, size=size, limit=limit)
        data = bytearray()
        for chunk in self.stream(key):
            data += chunk
            if len(data) > limit:  # it was replaced by a larger one since
                raise ObjectTooLarge(key, size=len(data), limit=limit)
        return bytes(data)

    @abstractmethod
    def stream(self, key: str) -> Iterator[bytes]:
        """The object in chunks of about 256 KiB. Raises `ObjectNotFound` at the first."""

    @abstractmethod
    def stat(self, key: str) -> StoredObject:
        """Size and time of an object. Raises `ObjectNotFound`."""

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectNotFound:
            return False
        return True

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Delete an object; False when there was none."""

    def sweep(self) -> int:
        """Remove the invisible files that killed writers left behind, and say how many."""
        return 0

    # Last in the class: below it, the name `list` no longer means the built-in type.
    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """What lies in the folder `prefix` and the folders in it; `a/b` doesn't list `a/bc`."""
