"""The store's file: opened on first use, shared by many threads and processes, written one at a time.

A process has one connection that writes and a few that read. Writers take turns twice: the threads of a
process on a lock, the processes on a lock file, because SQLite's own busy handler sleeps for up to 100 ms
(four processes: p99 19 ms; taking turns on a file: 5 ms). The turn is polled for instead of waited for,
so that a frozen process costs the others an error after a few seconds and not their lives. Only speed
depends on the lock file; if it is deleted, SQLite's own locks still hold.

A file that is deleted or replaced under a running process is noticed and opened anew: writing on into
one that has no name any more would hide everything quietly.

Before a fork all connections are closed, and both sides open their own: SQLite can't be carried across,
not even to be closed, and not even another connection to the same file is safe in the child then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from callboard.errors import StoreUnavailable
from callboard.store.sqlite.filesystem import network_filesystem
from callboard.store.sqlite.schema import APPLICATION_ID, MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_OLDEST_SQLITE = (3, 35)
_IDLE_READERS = 4
_POLL = 0.0002

_WAIT_BEFORE_FORK = 5.0
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_one_fork = threading.Lock()
_forking: list[Database] = []
_inherited: list[object] = []  # connections in use while the process was forked: never closed, see above


class Connection(sqlite3.Connection):
    """A connection that knows which file it has open, and how carefully it commits."""

    inode: tuple[int, int] | None = None
    synchronous = ""


class Database:
    """One SQLite file, or a database in memory.

    Parameters:
        path: The file, or None for memory.
        patience: Seconds to wait for a turn at writing.
    """

    def __init__(self, path: Path | None, *, patience: float = 5.0) -> None:
        self.path = path
        self.patience = patience
        self._closed = False
        self._forget()
        _databases.add(self)

    def _forget(self) -> None:
        """The state of a process that has opened nothing."""
        self._turn = threading.Lock()  # who has it may use the writer and the lock file
        self._writer: Connection | None = None
        self._lock_file: int | None = None
        self._pool = threading.Condition()
        self._idle: list[Connection] = []
        self._reading: set[Connection] = set()
        self._at_rest = False

    @property
    def name(self) -> str:
        return f"the store {self.path}" if self.path else "the store in memory"

    # -- reading and writing -----------------------------------------------------------------------------

    @contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[Connection]:
        """A transaction that no other writer interrupts; it is undone if the block raises.

        Parameters:
            durable: Whether it must outlive a power loss when the block has ended. Otherwise a power
                loss undoes the last moments, and never leaves half a transaction.

        Raises:
            StoreUnavailable: With one sentence that says what to do.
        """
        with self._explained(), self._my_turn():
            connection = self._open_writer()
            _commit_carefully(connection, durable)
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._undo(connection)
                raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of everything that was committed before. Writers don't disturb it.

        Raises:
            StoreUnavailable: With one sentence that says what to do.
        """
        if self.path is None:
            with self.writing() as connection:
                yield connection
            return
        with self._explained():
            connection = self._take_reader()
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._give_reader(connection, sound=False)
                raise
            self._give_reader(connection, sound=True)

    def close(self) -> None:
        """Close the file for good. It can be closed twice."""
        self._closed = True
        with self._turn, self._pool:
            self._close_connections()

    # -- turns -------------------------------------------------------------------------------------------

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self.patience):
            raise StoreUnavailable(
                f"{self.name} is busy: another thread has been writing for {self.patience:g} s"
            )
        try:
            if self._closed:
                raise StoreUnavailable(f"{self.name} is closed")
            if self.path is None:
                yield
                return
            self._reopen_if_replaced(self.path)
            lock_file = self._lock(self.path)
            try:
                yield
            finally:
                fcntl.flock(lock_file, fcntl.LOCK_UN)
        finally:
            self._turn.release()

    def _lock(self, path: Path) -> int:
        if self._lock_file is None:
            _prepare_folder(path)
            self._lock_file = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up = time.monotonic() + self.patience
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise StoreUnavailable(_locked(self.name, self.patience)) from None
                time.sleep(_POLL)
            else:
                return self._lock_file

    # -- connections -------------------------------------------------------------------------------------

    def _open_writer(self) -> Connection:
        if self._writer is None:
            connection = self._connect()
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
            self._writer = connection  # not before: a reader that sees a writer takes the tables for made
        return self._writer

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            self.path or ":memory:",
            timeout=self.patience,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        if self.path is not None:
            connection.inode = _inode(self.path)
        return connection

    def _set_up(self, connection: Connection) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            oldest = ".".join(map(str, _OLDEST_SQLITE))
            raise StoreUnavailable(
                f"{self.name} needs SQLite {oldest} or newer, and this Python has {sqlite3.sqlite_version}"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA secure_delete = OFF")  # Debian's default writes zeros over all that moves
        self._migrate(connection)

    def _migrate(self, connection: Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and tables:
            raise StoreUnavailable(
                f"{self.path} is another program's database: name another folder for the store"
            )
        if version > len(MIGRATIONS):
            raise StoreUnavailable(f"{self.name} was written by a newer Callboard: upgrade this one")
        if version == len(MIGRATIONS):
            return
        _commit_carefully(connection, True)
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for migrate in MIGRATIONS[version:]:
                migrate(connection)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            connection.execute("COMMIT")
        except BaseException:
            self._undo(connection)
            raise

    def _undo(self, connection: Connection) -> None:
        if not connection.in_transaction:  # it never began, or SQLite has undone it by itself
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _take_reader(self) -> Connection:
        assert self.path is not None
        writer = self._writer
        if writer is None or writer.inode != _inode(self.path):
            with self._my_turn():
                self._open_writer()  # makes or upgrades the file, or says why not
        with self._pool:
            if self._idle:
                connection = self._idle.pop()
            else:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
            self._reading.add(connection)
        return connection

    def _give_reader(self, connection: Connection, *, sound: bool) -> None:
        with self._pool:
            self._reading.discard(connection)
            writer = self._writer
            current = writer is not None and writer.inode == connection.inode
            if sound and current and not self._closed and len(self._idle) < _IDLE_READERS:
                self._idle.append(connection)
            else:
                connection.close()
            self._pool.notify_all()

    def _reopen_if_replaced(self, path: Path) -> None:
        if self._writer is not None and self._writer.inode != _inode(path):
            with self._pool:
                self._close_connections()

    def _close_connections(self) -> None:
        """Close what nobody uses; the caller has the turn and the pool."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._drop_writer()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # -- forks -------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        self._at_rest = self._turn.acquire(timeout=_WAIT_BEFORE_FORK)
        self._pool.acquire()
        self._pool.wait_for(lambda: not self._reading, timeout=_WAIT_BEFORE_FORK)
        if self._at_rest and self.path is not None:
            with suppress(sqlite3.Error, OSError):  # the fork comes anyway
                self._close_connections()

    def after_fork_in_parent(self) -> None:
        self._pool.release()
        if self._at_rest:
            self._turn.release()

    def after_fork_in_child(self) -> None:
        if self.path is None and self._at_rest:
            self.after_fork_in_parent()  # the child's memory has its own copy, complete
            return
        _inherited.append((self._writer, self._reading, self._idle))
        self._forget()

    # -- what can go wrong -------------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.DataError):
            raise  # a value that SQLite can't take is the caller's affair
        except sqlite3.Error as error:
            raise StoreUnavailable(self._explain(error)) from error
        except StoreUnavailable:
            raise
        except OSError as error:
            raise StoreUnavailable(self._explain_os(error)) from error

    def _explain(self, error: sqlite3.Error) -> str:
        # The low byte of SQLite's code says what kind of error it is, the rest how it came about.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and self._disk_is_full()):
            return _full(self.name)
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return f"{self.name} is damaged ({error}): move it away; history is lost with it, but no job"
        if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return _forbidden(self.name, error)
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return _locked(self.name, self.patience)
        return f"{self.name} failed: {error}"

    def _explain_os(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _full(self.name)
        if error.errno == errno.EROFS:
            return f"{self.name} can't be written, its file system is read-only: name another folder for the store"
        if error.errno in (errno.EACCES, errno.EPERM):
            return _forbidden(self.name, error)
        return f"{self.name} can't be opened ({error}): name another folder for the store"

    def _disk_is_full(self) -> bool:
        return self.path is not None and shutil.disk_usage(self.path.parent).free < 1_000_000


def _commit_carefully(connection: Connection, durable: bool) -> None:
    synchronous = "FULL" if durable else "NORMAL"
    if connection.synchronous != synchronous:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.synchronous = synchronous


def _prepare_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind := network_filesystem(path.parent):
        raise StoreUnavailable(
            f"the store {path} would lie on a network file system ({kind}), where SQLite's locks can't be "
            "trusted: name a local folder"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _full(name: str) -> str:
    return f"{name} can't grow, its disk is full: make room; jobs go on, records are lost meanwhile"


def _forbidden(name: str, error: Exception) -> str:
    return f"{name} can't be written ({error}): give this user the right to write the file and its folder"


def _locked(name: str, patience: float) -> str:
    return (
        f"{name} is locked: another process has been writing for {patience:g} s, look for one that is frozen"
    )


def _before_fork() -> None:
    _one_fork.acquire()
    _forking.extend(_databases)
    for database in _forking:
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in _forking:
        database.after_fork_in_parent()
    _forking.clear()
    _one_fork.release()


def _after_fork_in_child() -> None:
    for database in _forking:
        database.after_fork_in_child()
    _forking.clear()
    _one_fork.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
