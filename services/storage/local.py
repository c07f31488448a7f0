"""Objects as files in a folder.

A file is written in a hidden folder inside the root, synced, and renamed to its key: a reader sees the old
object or the new one. Each unfinished file is locked by its writer, so one whose lock is free was left by a
writer that died, and `sweep` removes it.

No symbolic link is followed below the root: every folder of a key is opened from the one before it without
following links, so swapping one in at the wrong moment changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from uuid import uuid4

from services.storage.base import (
    CHUNK_BYTES,
    ObjectNotFound,
    Storage,
    StorageUnavailable,
    StoredObject,
    Writer,
)
from services.storage.keys import HIDDEN, InvalidKey, check_key, check_prefix, is_key

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStorage(Storage):
    """Files below `root`, which is made at the first write. The root itself may be a symbolic link."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        names = check_key(key)
        with self._failing("write", key), self._folder(key, names[:-1], make=True) as folder:
            _refuse_unwritable(folder, names[-1], key)
        with self._unfinished(key) as (hidden, name, file):
            yield _LocalWriter(file, key, self)
            with self._failing("write", key):
                os.fsync(file.fileno())
                self._publish(hidden, name, key, names)

    def stream(self, key: str) -> Iterator[bytes]:
        names = check_key(key)
        with self._failing("read", key), self._folder(key, names[:-1]) as folder:
            file = _open_file(folder, names[-1], key)
        with file:
            while True:
                with self._failing("read", key):
                    chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def stat(self, key: str) -> StoredObject:
        names = check_key(key)
        with self._failing("read", key), self._folder(key, names[:-1]) as folder:
            return _stored(key, _status(folder, names[-1], key))

    def delete(self, key: str) -> bool:
        names = check_key(key)
        try:
            with self._failing("delete", key), self._folder(key, names[:-1]) as folder:
                _status(folder, names[-1], key)
                os.unlink(names[-1], dir_fd=folder)
        except ObjectNotFound:
            return False
        self._prune(key, names[:-1])
        return True

    def sweep(self) -> int:
        swept = 0
        try:
            with self._failing("sweep", HIDDEN), self._folder(HIDDEN, (HIDDEN,)) as hidden:
                for name in os.listdir(hidden):  # noqa: PTH208 - a Path can't name an open folder
                    swept += _remove_if_abandoned(hidden, name)
        except ObjectNotFound:  # nothing was ever written
            pass
        return swept

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        names = check_prefix(prefix)
        # The list is cut into folders so that a folder's descriptor is open only while it is read.
        waiting = [names]
        while waiting:
            here = waiting.pop()
            folders, files = self._look_into(prefix, here)
            waiting.extend(reversed(folders))
            yield from files

    def __str__(self) -> str:
        return str(self._root)

    def _look_into(
        self, prefix: str, here: tuple[str, ...]
    ) -> tuple[Sequence[tuple[str, ...]], Sequence[StoredObject]]:
        folders, files = [], []
        try:
            with (
                self._failing("list", prefix),
                self._folder(prefix, here) as folder,
                os.scandir(folder) as entries,
            ):
                for entry in entries:
                    names = (*here, entry.name)
                    if not is_key("/".join(names)):
                        continue  # a file that no key can name: not ours
                    with suppress(FileNotFoundError):  # deleted since
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(names)
                        elif entry.is_file(follow_symlinks=False):
                            files.append(_stored("/".join(names), entry.stat(follow_symlinks=False)))
        except ObjectNotFound:
            return [], []
        return sorted(folders), sorted(files, key=lambda file: file.key)

    @contextmanager
    def _failing(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if action != "write" and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise ObjectNotFound(key, str(self)) from error
            raise StorageUnavailable(f"can't {action} '{key}' in {self}: {error.strerror}") from error

    @contextmanager
    def _folder(self, key: str, names: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """The folder as a descriptor, which stays the same folder whatever is renamed meanwhile."""
        if make:
            self._root.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._root, _FOLDER & ~os.O_NOFOLLOW)
        try:
            for name in names:
                inner = _descend(folder, name, key, make=make)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _unfinished(self, key: str) -> Iterator[tuple[int, str, FileIO]]:
        """A new locked file in the hidden folder, gone at the end unless it was renamed."""
        with self._failing("write", key), self._folder(key, (HIDDEN,), make=True) as opened:
            hidden = os.dup(opened)
        try:
            with self._failing("write", key):
                name, file = _create_locked(hidden)
            with closing(file):
                try:
                    yield hidden, name, file
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=hidden)
        finally:
            os.close(hidden)

    def _publish(self, hidden: int, name: str, key: str, names: tuple[str, ...]) -> None:
        for attempt in range(5):
            try:
                with self._folder(key, names[:-1], make=True) as folder:
                    _refuse_unwritable(folder, names[-1], key)
                    os.rename(name, names[-1], src_dir_fd=hidden, dst_dir_fd=folder)
                    os.fsync(folder)
                    return
            except FileNotFoundError:  # a delete took the empty folder away between the two lines
                if attempt == 4:
                    raise

    def _prune(self, key: str, folders: tuple[str, ...]) -> None:
        """Remove folders that a delete left empty, innermost first."""
        for depth in range(len(folders), 0, -1):
            try:
                with self._folder(key, folders[: depth - 1]) as parent:
                    os.rmdir(folders[depth - 1], dir_fd=parent)
            except (OSError, InvalidKey):
                return


class _LocalWriter:
    """Writes to the unfinished file, and says which key it was for when the disk is full.

    Unbuffered: a buffer that a forked child inherits would be written a second time when the child ends.
    """

    def __init__(self, file: FileIO, key: str, storage: LocalStorage) -> None:
        self._file, self._key, self._storage = file, key, storage

    def write(self, data: bytes, /) -> int:
        left = memoryview(data)
        with self._storage._failing("write", self._key):
            while left:
                left = left[self._file.write(left) :]
        return len(data)


def _descend(folder: int, name: str, key: str, *, make: bool) -> int:
    if make:
        try:
            os.mkdir(name, dir_fd=folder)
            os.fsync(folder)
        except FileExistsError:
            pass
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise InvalidKey(key, f"it leads through the symbolic link '{name}'") from error
        if make:
            raise InvalidKey(key, f"'{name}' is a file, not a folder") from error
        raise


def _status(folder: int, name: str, key: str) -> os.stat_result:
    """The status of an ordinary file; whatever else has the name is no object."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise InvalidKey(key, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not an ordinary file", name)
    return status


def _refuse_unwritable(folder: int, name: str, key: str) -> None:
    """Only an ordinary file may be written over."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise InvalidKey(key, "it is a symbolic link")
    if not stat.S_ISREG(mode):
        raise InvalidKey(key, "a folder or a device has this name")


def _open_file(folder: int, name: str, key: str) -> FileIO:
    _status(folder, name, key)
    # Without waiting: should the name become a pipe meanwhile, opening it must not hang.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    return FileIO(descriptor)


def _create_locked(hidden: int) -> tuple[str, FileIO]:
    while True:
        name = uuid4().hex
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=hidden)
        file = FileIO(descriptor, "wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return name, file
        file.close()  # a sweep found it in the moment before it was locked


def _remove_if_abandoned(hidden: int, name: str) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=hidden)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=hidden)
    except (BlockingIOError, FileNotFoundError):  # its writer lives, or has just finished
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _stored(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
