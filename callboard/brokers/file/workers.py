"""Who may hold claims: the workers, each known by a row in the database and by a lock on a file.

A worker has a number, under which its claims stand, and locks `workers/<number>.lock` for as long as it
lives. The kernel drops the lock with the process, so a lock that can be had belongs to the dead. Rows
and files change only inside a writer's transaction, so nobody sees a worker half registered.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from callboard.brokers.file import messages
from callboard.brokers.file.locks import LockedFile
from callboard.brokers.file.schema import FIRST_WORKER, MAX_WORKERS
from callboard.errors import BrokerUnavailable


@dataclass(slots=True)
class Registration:
    """A worker's number, and the lock that proves that it lives."""

    number: int
    name: str
    lock: LockedFile


def register(connection: sqlite3.Connection, folder: Path, name: str, queues: Sequence[str]) -> Registration:
    """Give a worker a number and its lock."""
    taken = {number for (number,) in connection.execute("SELECT number FROM workers")}
    free = (number for number in range(FIRST_WORKER, FIRST_WORKER + MAX_WORKERS) if number not in taken)
    number = next(free, None)
    if number is None:
        raise BrokerUnavailable(f"{folder} has {MAX_WORKERS} workers already; run fewer of them")
    # Others only see the file when it is locked and named.
    made = folder / f"{number}.new"
    made.unlink(missing_ok=True)
    lock = LockedFile(made)
    try:
        lock.try_lock()
        os.write(lock.fd, name.encode())
        made.rename(_lock_path(folder, number))
        connection.execute("INSERT INTO workers VALUES (?, ?, ?)", (number, name, json.dumps(list(queues))))
    except BaseException:
        lock.close()
        raise
    return Registration(number, name, lock)


def leave(connection: sqlite3.Connection, folder: Path, worker: Registration) -> None:
    """Forget a worker that holds nothing any more."""
    rows = connection.execute(
        "DELETE FROM workers WHERE number = ? AND name = ?", (worker.number, worker.name)
    )
    if rows.rowcount:
        _lock_path(folder, worker.number).unlink(missing_ok=True)


def others(connection: sqlite3.Connection, worker: int | None) -> list[tuple[int, str]]:
    """The numbers and names of all workers but one."""
    return [row for row in connection.execute("SELECT number, name FROM workers") if row[0] != worker]


def is_dead(folder: Path, number: int, name: str) -> bool:
    """Whether a worker's lock can be had, or isn't there: the folder was restored without it, or cleaned."""
    try:
        file = LockedFile(_lock_path(folder, number), create=False)
    except FileNotFoundError:
        return True
    try:
        return os.read(file.fd, 4096).decode() != name or file.try_lock()
    finally:
        file.close()


def bury(connection: sqlite3.Connection, folder: Path, suspects: Sequence[tuple[int, str]]) -> list[int]:
    """Rescue the claims of those who are dead for certain. Returns the queues that have messages again."""
    queues: set[int] = set()
    for number, name in suspects:
        row = connection.execute("SELECT name FROM workers WHERE number = ?", (number,)).fetchone()
        if row is None or row[0] != name or not is_dead(folder, number, name):
            continue
        queues.update(messages.rescue(connection, number))
        connection.execute("DELETE FROM workers WHERE number = ?", (number,))
        for path in (_lock_path(folder, number), folder / f"{number}.bell"):
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(queues)


def _lock_path(folder: Path, number: int) -> Path:
    return folder / f"{number}.lock"
