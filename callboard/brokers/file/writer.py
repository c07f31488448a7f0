"""Everything that one process writes into the file, in as few transactions as possible.

A thread that comes while another commits leaves its work in the queue; whoever commits next does all that
has gathered, in one transaction. So eight senders pay for one wait on the disk, not for eight.

Processes wait for each other on a lock file, and only then begin: SQLite's own way of waiting sleeps in
steps that grow, which halves the rate and makes the slowest wait ten times longer.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from callboard import forks
from callboard.brokers.file import bells
from callboard.brokers.file.locks import TurnLock
from callboard.brokers.file.schema import LOG_PAGES, PAGE, connect, explain, make_folder, read_identity
from callboard.errors import BrokerUnavailable

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_WARM = 64  # commits
_SPARE_PAGES = 4096  # 16 MB
_CHEAP_PAGES = 2048  # 8 MB; they are written anew in some 20 ms


class NotWritten(BrokerUnavailable):
    """Nothing was written. The text says why."""


class MaybeWritten(BrokerUnavailable):
    """It isn't known whether it was written. The text says why."""


class Replaced(NotWritten):
    """The file is another than the one that the work was meant for."""


class _Entry:
    """One caller's work, and what became of it."""

    __slots__ = ("done", "durable", "error", "generation", "gone", "latch", "result", "work")

    def __init__(self, work: Work[Any], durable: bool, generation: int | None) -> None:
        self.work = work
        self.durable = durable
        self.generation = generation
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.gone = False  # its caller waits no more
        #: On which its caller waits until it is done, or is to lead. The caller who leads has none.
        self.latch: threading.Lock | None = None


class Writer:
    """The one connection by which a process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "queue.db"
        self._name = str(self.path)
        self._transaction = threading.Lock()  # held while the connection is in use
        self._reset()
        forks.follow(self, at_rest=self._transaction)

    def _reset(self) -> None:
        self._mutex = threading.Lock()  # guards the queue and who leads
        self._queue: deque[_Entry] = deque()
        self._leader: _Entry | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._identity = b""
        self._durable = True
        self._shrinks = False
        self._commits = 0  # those that waited for the disk
        self._lock_file: TurnLock | None = None
        self._closed = False
        #: Grows whenever another file is opened, so that what was remembered of the last is forgotten.
        self.generation = 0

    def run(self, work: Work[T], *, durable: bool, until: float, generation: int | None = None) -> T:
        """Do some work in a transaction, perhaps together with others'. If `durable`, it is on the disk
        when this returns; else a power loss, but no crash of a process, may undo it.

        `work` may be called twice if the first transaction fails: it must only read and write the database.

        Args:
            until: The moment, in seconds of `time.monotonic`, by which it must have begun.
            generation: Of the file for which the work is meant, if it knows anything about the file.

        Raises:
            NotWritten, MaybeWritten: or what `work` raised.
        """
        entry = _Entry(work, durable, generation)
        with self._mutex:
            if self._leader is None:
                self._leader = entry
            else:
                entry.latch = threading.Lock()
                entry.latch.acquire()
                self._queue.append(entry)
        try:
            if self._leader is not entry:
                self._await_turn(entry, until)
            if self._leader is entry:
                self._lead(entry, until)
        finally:
            self._leave(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[no-any-return]

    def _await_turn(self, entry: _Entry, until: float) -> None:
        assert entry.latch is not None
        if entry.latch.acquire(timeout=max(0.0, until - time.monotonic())):
            return
        with self._mutex:
            if self._leader is entry or entry.done:
                return
            if entry in self._queue:
                raise NotWritten(self._too_late())
        raise MaybeWritten(f"{self.path} is being written for too long: the disk may hang")

    def _too_late(self) -> str:
        return f"{self.path} was busy for too long: too many write at once, or one of them is frozen"

    def _leave(self, entry: _Entry) -> None:
        """Wait no more, whatever the reason; and let the next in the queue lead, if we did."""
        with self._mutex:
            entry.gone = True
            if self._leader is entry:
                while self._queue and self._queue[0].gone:
                    self._queue.popleft()
                self._leader = heir = self._queue.popleft() if self._queue else None
                if heir is not None and heir.latch is not None:
                    heir.latch.release()
            elif not entry.done and entry in self._queue:
                self._queue.remove(entry)

    def _lead(self, own: _Entry, until: float) -> None:
        batch = _Batch([own])
        try:
            self._take_lock(until)
            with self._transaction:
                if self._queue:
                    self._gather(batch)
                try:
                    self._write(batch, until)
                finally:
                    batch.settle()
        finally:
            if self._lock_file is not None:
                self._lock_file.unlock()
            if len(batch.entries) > 1:
                self._release(batch, own)

    def _take_lock(self, until: float) -> None:
        try:
            if self._lock_file is None:
                self._lock_file = self._open_lock()
            taken = self._lock_file.lock(until)
        except (OSError, ValueError) as error:
            if isinstance(error, BrokerUnavailable):
                raise
            raise NotWritten(self._closed_text() if self._closed else explain(error, self.path)) from error
        if not taken:
            raise NotWritten(self._too_late())

    def _closed_text(self) -> str:
        return f"the driver of {self.path} is closed"

    def _open_lock(self) -> TurnLock:
        if self._closed:
            raise NotWritten(self._closed_text())
        path = self.folder / "queue.lock"
        try:
            return TurnLock(path)
        except FileNotFoundError:
            make_folder(self.folder)
            return TurnLock(path)

    def shrink(self, *, until: float) -> None:
        """Give unused room in the file back to the disk, if that is most of it and so costs little.

        Raises:
            NotWritten, MaybeWritten
        """
        self._shrinks = self.run(_is_mostly_spare, durable=False, until=until)
        if self._shrinks:
            self.run(lambda connection: None, durable=False, until=until)

    def _gather(self, batch: _Batch) -> None:
        with self._mutex:
            batch.entries.extend(self._queue)
            self._queue.clear()

    def _write(self, batch: _Batch, until: float) -> None:
        entries = batch.entries
        try:
            batch.connection = connection = self._open()
            if self._shrinks:
                self._shrinks = False
                _vacuum(connection)
            self._begin(connection, any(entry.durable for entry in entries), until)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            batch.fail(NotWritten(explain(error, self.path)), error)
            return
        batch.begun = True
        try:
            for entry in entries:
                self._do(entry, connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the work came from
            batch.undo()
            self._write_singly(batch, error, until)
            return
        except BaseException:
            batch.undo()
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(batch, error)
            return
        self._commits += self._durable
        if self._commits == _WARM and self._durable:
            batch.settle()
            self._lengthen_log(connection)

    def _lengthen_log(self, connection: sqlite3.Connection) -> None:
        """Make the log as long as it becomes before it begins anew: a commit that only writes over it takes
        half the time of one that makes it longer. Too much for a process that sends a few messages."""
        with contextlib.suppress(sqlite3.Error, OSError):
            if os.stat(f"{self._name}-wal").st_size < LOG_PAGES * PAGE:  # noqa: PTH116 - a str is at hand
                connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (LOG_PAGES * PAGE,))
                connection.execute("DELETE FROM filler")
                connection.execute("PRAGMA wal_checkpoint")

    def _do(self, entry: _Entry, connection: sqlite3.Connection) -> None:
        if entry.generation not in (None, self.generation):
            raise Replaced(f"{self.path} has been replaced")
        entry.result = entry.work(connection)

    def _write_singly(self, batch: _Batch, error: Exception, until: float) -> None:
        """One of them failed, and took the others with it: try each on its own."""
        if len(batch.entries) == 1:
            if isinstance(error, sqlite3.Error):
                batch.fail(NotWritten(explain(error, self.path)), error)
            else:
                batch.fail(error, None)
            return
        for entry in batch.entries:
            single = _Batch([entry])
            try:
                self._write(single, until)
            finally:
                single.settle()

    def _give_up(self, batch: _Batch, error: sqlite3.Error) -> None:
        code = error.sqlite_errorcode & 0xFF
        text = explain(error, self.path)
        batch.undo()
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            batch.fail(NotWritten(text), error)
        else:  # The pages may be on the disk, and a process that opens the file after a crash may find them.
            batch.fail(MaybeWritten(text), error)
            self._disconnect()

    def _begin(self, connection: sqlite3.Connection, durable: bool, until: float) -> None:
        if connection.in_transaction:  # an exception from outside struck at the worst moment
            connection.execute("ROLLBACK")
        if durable is not self._durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                # A program that doesn't know the lock file, such as the sqlite3 shell, is writing.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            else:
                return

    def _release(self, batch: _Batch, own: _Entry) -> None:
        """Let the others whose work is done return."""
        for entry in batch.entries:
            if entry.done and entry.latch is not None and entry is not own:
                entry.latch.release()
        left = [entry for entry in batch.entries if not entry.done and entry is not own]
        if left:  # An exception from outside, such as a time limit, stopped us before anything was written.
            with self._mutex:
                self._queue.extendleft(entry for entry in reversed(left) if not entry.gone)

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one if the file has been replaced under us."""
        if self._closed:
            raise NotWritten(self._closed_text())
        try:
            inode = os.stat(self._name).st_ino  # noqa: PTH116 - it runs at every commit
        except FileNotFoundError:
            inode = 0
        if self._connection is not None:
            if inode == self._inode:
                return self._connection
            self._disconnect()
        make_folder(self.folder)
        bells.set_up(self.folder / "workers")
        self._connection = connect(self.path)
        self._durable = True
        self._inode = self.path.stat().st_ino
        identity = read_identity(self._connection)
        if identity != self._identity:
            self._identity = identity
            self.generation += 1
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close the connection; what comes later is refused."""
        with self._transaction:
            self._closed = True
            self._disconnect()
            lock, self._lock_file = self._lock_file, None
        if lock is not None:
            lock.close()

    def forked(self) -> None:
        """Forget the connection. It is never closed here, because that would touch the parent's file."""
        if self._connection is not None:
            _inherited.append(self._connection)
        closed = self._closed
        self._reset()
        self._closed = closed


class _Batch:
    """What is written in one transaction."""

    __slots__ = ("begun", "connection", "entries", "over")

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.connection: sqlite3.Connection | None = None
        self.begun = False
        self.over = False  # rolled back, or done with

    def undo(self) -> None:
        self.over = True
        if self.connection is not None and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def fail(self, error: BaseException, cause: BaseException | None) -> None:
        self.over = True
        for entry in self.entries:
            entry.error = error
            entry.done = True
        error.__cause__ = cause

    def settle(self) -> None:
        """Note who is done. An exception may strike between any two lines, so SQLite is asked."""
        if self.over or self.connection is None:
            return
        if self.connection.in_transaction:
            self.undo()
        elif self.begun:
            self.over = True
            for entry in self.entries:
                entry.done = True


def _is_mostly_spare(connection: sqlite3.Connection) -> bool:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    spare: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return spare > _SPARE_PAGES and pages - spare < _CHEAP_PAGES


def _vacuum(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # no room for a copy, or somebody reads: another time
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint")


_inherited: list[sqlite3.Connection] = []
