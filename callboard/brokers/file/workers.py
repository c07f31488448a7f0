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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from callboard.brokers.file import bells, messages
from callboard.brokers.file.locks import LockedFile
from callboard.brokers.file.schema import FIRST_WORKER, MAX_WORKERS, queue_of
from callboard.errors import BrokerUnavailable


@dataclass(slots=True)
class Registration:
    """A worker's number, and the lock that proves that it lives."""

    number: int
    name: str
    lock: LockedFile


@dataclass(slots=True)
class Dead:
    """Who was found dead, and what others may have again."""

    names: list[str] = field(default_factory=list)
    queues: set[int] = field(default_factory=set)
    messages: int = 0


def register(connection: sqlite3.Connection, folder: Path, name: str, queues: Sequence[str]) -> Registration:
    """Give a worker a number and its lock."""
    bells.set_up(folder)
    number = _free_number(connection, folder)
    messages.rescue(connection, number)  # should anybody before us have left something
    lock = _make_lock(folder, number, name)
    connection.execute("INSERT INTO workers VALUES (?, ?, ?)", (number, name, json.dumps(list(queues))))
    return Registration(number, name, lock)


def _free_number(connection: sqlite3.Connection, folder: Path) -> int:
    """The next number after the last one that was given: one that was a worker's a moment ago may still be
    in the mouth of somebody who doesn't know that he is taken for dead."""
    taken = {number for (number,) in connection.execute("SELECT number FROM workers")}
    last: int = connection.execute("SELECT last_worker FROM identity").fetchone()[0]
    for step in range(MAX_WORKERS):
        number = FIRST_WORKER + (last + 1 - FIRST_WORKER + step) % MAX_WORKERS
        if number not in taken:
            connection.execute("UPDATE identity SET last_worker = ?", (number,))
            return number
    raise BrokerUnavailable(f"{folder} has {MAX_WORKERS} workers already; run fewer of them")


def _make_lock(folder: Path, number: int, name: str) -> LockedFile:
    """Others only see the file when it is locked and named."""
    made = folder / f"{number}.new"
    made.unlink(missing_ok=True)
    lock = LockedFile(made)
    lock.try_lock()
    os.write(lock.fd, name.encode())
    made.rename(_lock_path(folder, number))
    return lock


def renew(connection: sqlite3.Connection, folder: Path, worker: Registration) -> Registration | None:
    """Make a worker's lock file anew; None if the worker has been buried meanwhile."""
    if _name(connection, worker.number) != worker.name:
        return None
    bells.set_up(folder)
    return Registration(worker.number, worker.name, _make_lock(folder, worker.number, worker.name))


def leave(connection: sqlite3.Connection, folder: Path, worker: Registration) -> None:
    """Forget a worker. Should it hold anything yet, others may have that."""
    if _name(connection, worker.number) == worker.name:
        messages.rescue(connection, worker.number)
        connection.execute("DELETE FROM workers WHERE number = ?", (worker.number,))
        _lock_path(folder, worker.number).unlink(missing_ok=True)


def present(folder: Path) -> set[int]:
    """The numbers of all who have a lock file."""
    try:
        files = os.listdir(folder)  # noqa: PTH208 - names will do, four times a second
    except FileNotFoundError:
        return set()
    return {int(file[:-5]) for file in files if file.endswith(".lock") and file[:-5].isdecimal()}


def suspects(folder: Path, numbers: Iterable[int]) -> list[int]:
    """Those whose lock can be had. Touches no database."""
    return [number for number in numbers if is_free(folder, number)]


def bury(connection: sqlite3.Connection, folder: Path, suspects: Collection[int] | None) -> Dead:
    """Rescue the claims of those who are dead for certain, among the suspects or among all.

    Whose lock isn't there is dead too: the folder was restored, or cleaned.
    """
    dead = Dead()
    numbers = set(suspects or ())
    for number, name in connection.execute("SELECT number, name FROM workers").fetchall():
        if suspects is not None and number not in suspects:
            continue
        if not is_free(folder, number, name):
            continue
        rescued = messages.rescue(connection, number)
        connection.execute("DELETE FROM workers WHERE number = ?", (number,))
        numbers.add(number)
        dead.names.append(name)
        dead.queues.update(map(queue_of, rescued))
        dead.messages += len(rescued)
    for number in numbers:
        _remove_files(connection, folder, number)
    return dead


def _remove_files(connection: sqlite3.Connection, folder: Path, number: int) -> None:
    """Remove what a worker that has no row any more left behind."""
    if _name(connection, number) is None:
        for path in (_lock_path(folder, number), folder / f"{number}.bell"):
            with contextlib.suppress(OSError):
                path.unlink()


def is_free(folder: Path, number: int, name: str | None = None) -> bool:
    """Whether a worker's lock can be had, or isn't there, or is that of somebody with another name."""
    try:
        file = LockedFile(_lock_path(folder, number), create=False)
    except FileNotFoundError:
        return True
    try:
        return (name is not None and os.read(file.fd, 4096).decode() != name) or file.try_lock()
    finally:
        file.close()


def _name(connection: sqlite3.Connection, number: int) -> str | None:
    row = connection.execute("SELECT name FROM workers WHERE number = ?", (number,)).fetchone()
    return row[0] if row is not None else None


def _lock_path(folder: Path, number: int) -> Path:
    return folder / f"{number}.lock"
