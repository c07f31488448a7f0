"""The tables, and how they came to be: one function a version, never changed once it was released.

A step only adds. A process of the version before may go on writing while a newer one has upgraded the
file, so columns get defaults, and nothing is renamed or dropped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from callboard.store.merge import FIELDS, KIND

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

APPLICATION_ID = 0x0CA11B0D

_TYPES = {
    "priority": "INTEGER",
    "attempt": "INTEGER",
    "enqueued_at": "REAL",
    "due_at": "REAL",
    "expires_at": "REAL",
    "started_at": "REAL",
    "finished_at": "REAL",
    "progress": "REAL",
}


def _column(name: str) -> str:
    return f"{name} TEXT NOT NULL DEFAULT ''" if name in KIND else f"{name} {_TYPES.get(name, 'TEXT')}"


def _version_1(connection: sqlite3.Connection) -> None:
    # `born` is when the job was new: what "newest first" goes by. It never changes, so neither do the
    # places of records among the pages of a search. `ord` and `low` are the highest and lowest order of
    # the changes written so far; `history` is which fields each of them set (see merge.py). `told` is
    # how many lines the story had in all.
    connection.execute(
        f"""
        CREATE TABLE records (
            seq INTEGER PRIMARY KEY,
            job_id TEXT NOT NULL UNIQUE,
            ord INTEGER NOT NULL,
            low INTEGER NOT NULL,
            state TEXT NOT NULL,
            updated_at REAL NOT NULL,
            born REAL NOT NULL,
            told INTEGER NOT NULL,
            history TEXT NOT NULL,
            {", ".join(_column(name) for name in FIELDS)}
        )
        """
    )
    # Four filters for the price of one index, and the newest first in each; see search.py.
    connection.execute("CREATE INDEX records_kind ON records (actor, category, queue, state, born)")
    connection.execute("CREATE INDEX records_born ON records (born)")
    connection.execute(
        "CREATE INDEX records_fingerprint ON records (fingerprint, born) WHERE fingerprint IS NOT NULL"
    )
    connection.execute(
        """
        CREATE TABLE events (
            seq INTEGER NOT NULL,
            slot INTEGER NOT NULL,
            at REAL NOT NULL,
            state TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            worker TEXT NOT NULL,
            text TEXT NOT NULL,
            PRIMARY KEY (seq, slot)
        ) WITHOUT ROWID
        """
    )
    connection.execute(
        "CREATE TABLE tags (tag TEXT NOT NULL, born REAL NOT NULL, seq INTEGER NOT NULL, "
        "PRIMARY KEY (tag, born, seq)) WITHOUT ROWID"
    )
    # A new file starts at a version that no file before it had, or a worker would take it for the old one.
    connection.execute("CREATE TABLE control (version INTEGER NOT NULL)")
    connection.execute("INSERT INTO control VALUES (?)", (time.time_ns() // 1000,))
    connection.execute("CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID")
    connection.execute("CREATE TABLE cancelled (job_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID")
    for table, value in (("keys", "owner TEXT"), ("numbers", "value INTEGER"), ("results", "value BLOB")):
        connection.execute(
            f"CREATE TABLE {table} (key TEXT PRIMARY KEY, {value} NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID"
        )
        connection.execute(f"CREATE INDEX {table}_expire ON {table} (expires_at)")
    connection.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    connection.execute(
        "CREATE TABLE heartbeats (worker TEXT PRIMARY KEY, at REAL NOT NULL, data TEXT NOT NULL)"
    )
    connection.execute(
        """
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at REAL NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            target TEXT NOT NULL,
            count INTEGER NOT NULL,
            details TEXT NOT NULL
        )
        """
    )
    connection.execute("CREATE INDEX audit_at ON audit (at)")


def _version_2(connection: sqlite3.Connection) -> None:
    connection.execute(
        """
        CREATE TABLE schedules (
            name TEXT PRIMARY KEY,
            spec TEXT NOT NULL DEFAULT '',
            until REAL,
            paused_at REAL,
            paused_by TEXT NOT NULL DEFAULT ''
        ) WITHOUT ROWID
        """
    )
    connection.execute(
        "CREATE TABLE ticks (schedule TEXT NOT NULL, due REAL NOT NULL, data TEXT NOT NULL, "
        "PRIMARY KEY (schedule, due)) WITHOUT ROWID"
    )


def _version_3(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE limits (key TEXT PRIMARY KEY, data BLOB NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX limits_expire ON limits (expires_at)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_version_1, _version_2, _version_3)
