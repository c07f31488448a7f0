"""Objects in S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from callboard.errors import MissingExtra, SettingsError
from services.storage.base import (
    CHUNK_BYTES,
    ObjectNotFound,
    Storage,
    StorageUnavailable,
    StoredObject,
    Writer,
)
from services.storage.keys import check_key, check_prefix

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class CloudStorage(Storage):
    """Objects in a bucket. Credentials come from the cloud's own variables, such as `AWS_ACCESS_KEY_ID`.

    An object is gathered in a temporary local file and uploaded when it is complete: an upload that is given
    up half-way never becomes visible, and memory stays flat. Such an upload may leave parts that only the
    bucket's own life-cycle rules ("abort incomplete multipart uploads") remove.
    """

    def __init__(self, store: ObjectStore, *, name: str) -> None:
        self._store = store
        self._name = name

    @classmethod
    def at(cls, url: str) -> CloudStorage:
        """The bucket and prefix at `s3://`, `gs://` or `az://`; nothing is contacted yet.

        Raises:
            MissingExtra: obstore isn't installed.
            SettingsError: the URL is malformed.
        """
        scheme = url.partition(":")[0]
        if urlsplit(url).username is not None:
            raise SettingsError("CALLBOARD_STORAGE_URL: credentials belong into the cloud's own variables")
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("storage", needed_for=f"storage at {scheme}://") from error
        try:
            # A job has a retry policy of its own: give up long before obstore's three minutes.
            store = from_url(url, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)})
        except (BaseError, ValueError) as error:
            raise SettingsError(f"CALLBOARD_STORAGE_URL: {_first_line(error)}") from error
        return cls(store, name=url)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        import obstore

        check_key(key)
        with TemporaryFile() as file:
            yield file
            file.seek(0)
            with self._failing("write", key):
                obstore.put(self._store, key, file)

    def stream(self, key: str) -> Iterator[bytes]:
        import obstore

        check_key(key)
        with self._failing("read", key):
            chunks = iter(obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES))
        while True:
            with self._failing("read", key):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield bytes(chunk)

    def stat(self, key: str) -> StoredObject:
        import obstore

        check_key(key)
        with self._failing("read", key):
            meta = obstore.head(self._store, key)
        return StoredObject(key, meta["size"], meta["last_modified"])

    def delete(self, key: str) -> bool:
        import obstore

        if not self.exists(key):
            return False
        with self._failing("delete", key):
            obstore.delete(self._store, key)
        return True

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        import obstore

        pages = iter(obstore.list(self._store, prefix="/".join(check_prefix(prefix)) or None))
        while True:
            with self._failing("list", prefix):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield StoredObject(meta["path"], meta["size"], meta["last_modified"])

    def __str__(self) -> str:
        return self._name

    @contextmanager
    def _failing(self, action: str, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        _refuse_after_fork()
        try:
            yield
        except FileNotFoundError as error:
            if action == "write":
                raise StorageUnavailable(f"can't write '{key}': {self} doesn't exist") from error
            raise ObjectNotFound(key, str(self)) from error
        except (BaseError, OSError, ValueError) as error:
            raise StorageUnavailable(f"can't {action} '{key}' in {self}: {_first_line(error)}") from error


_used_by: int | None = None


def _refuse_after_fork() -> None:
    """obstore's threads don't come along into a forked child, where a call would wait for them for ever."""
    global _used_by
    if _used_by is None:
        _used_by = os.getpid()
    if _used_by != os.getpid():
        raise StorageUnavailable(
            f"cloud storage was used before process {os.getpid()} was forked, and can't be used after: "
            "fork before its first use, or start the process anew"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
