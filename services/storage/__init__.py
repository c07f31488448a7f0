"""Where files live: a local folder, or a bucket in S3, Google Cloud Storage or Azure.

The functions here work on the storage that `CALLBOARD_STORAGE_URL` names; see `Storage` for what they raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import Field

from callboard.errors import SettingsError
from callboard.settings import CallboardSettings
from services.default import Default
from services.storage.base import (
    ObjectNotFound,
    ObjectTooLarge,
    Storage,
    StorageUnavailable,
    StoredObject,
    Writer,
)
from services.storage.cloud import CloudStorage
from services.storage.keys import InvalidKey, check_key, check_prefix
from services.storage.local import LocalStorage

__all__ = [
    "CloudStorage",
    "InvalidKey",
    "LocalStorage",
    "ObjectNotFound",
    "ObjectTooLarge",
    "Storage",
    "StorageSettings",
    "StorageUnavailable",
    "StoredObject",
    "Writer",
    "check_key",
    "check_prefix",
    "default",
    "delete",
    "exists",
    "list",
    "open_storage",
    "open_write",
    "put",
    "read",
    "stat",
    "stream",
]


# A relative folder is the same wherever a process was started.
_APPLICATION = Path(__file__).parents[2]


class StorageSettings(CallboardSettings):
    """Where files live."""

    storage_url: str = Field(
        "file:var/storage",
        description="Where jobs read and write files: file:FOLDER, s3://BUCKET/PREFIX, gs://... or az://...",
    )


def open_storage(url: str) -> Storage:
    """The storage at `url`. Nothing is read, made or contacted yet.

    Raises:
        SettingsError: the URL is of no known kind, or malformed.
        MissingExtra: a cloud storage needs obstore.
    """
    scheme, _, rest = url.partition(":")
    if scheme in {"s3", "gs", "az"}:
        return CloudStorage.at(url)
    if scheme == "file" and rest.startswith("///"):
        return LocalStorage(Path(rest[2:]))
    if scheme == "file" and rest and not rest.startswith("//"):
        return LocalStorage(_APPLICATION / rest)
    raise SettingsError(
        f"CALLBOARD_STORAGE_URL: '{scheme}:' is no storage; it is file:FOLDER, file:///FOLDER, "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    )


default: Default[Storage] = Default(lambda: open_storage(StorageSettings.load().storage_url))


def put(key: str, data: bytes | Iterable[bytes]) -> int:
    """Store `data`, whole or in chunks, and return its size in bytes."""
    return default().put(key, data)


def open_write(key: str) -> AbstractContextManager[Writer]:
    """Stream an object that appears when the block ends, and not at all if it raises."""
    return default().open_write(key)


def read(key: str, *, limit: int | None = None) -> bytes:
    """The whole object, unless it has more than `limit` bytes."""
    return default().read(key, limit=limit)


def stream(key: str) -> Iterator[bytes]:
    """The object in chunks."""
    return default().stream(key)


def stat(key: str) -> StoredObject:
    """Size and time of an object."""
    return default().stat(key)


def exists(key: str) -> bool:
    return default().exists(key)


def delete(key: str) -> bool:
    """Delete an object; False when there was none."""
    return default().delete(key)


def list(prefix: str = "") -> Iterator[StoredObject]:
    """What lies in the folder `prefix` and the folders in it."""
    return default().list(prefix)
