"""The database file: its tables, its version, and what is said when it can't be used."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from callboard.errors import BrokerUnavailable

APPLICATION = 0x43616C6C  # "Call": tells this file from other SQLite files
VERSION = 1

# A message's id says its queue and its place: 12 bits of queue, then 51 bits of microseconds since 1970
# at which it became ready. So a queue is one stretch of the table, in order, and a put touches one page.
PLACE_BITS = 51
LAST_PLACE = (1 << PLACE_BITS) - 1
MAX_QUEUES = (1 << 12) - 1

# `claim` is the number of the worker that has a message. All numbers take two bytes, nobody's too, so that
# SQLite changes a claim within the row instead of writing the row anew.
NOBODY = 128
FIRST_WORKER = NOBODY + 1
MAX_WORKERS = 1024

PAGE = 4096  # bytes
LOG_PAGES = 1000  # after which the write-ahead log begins anew

_TABLES = f"""
CREATE TABLE identity (id BLOB NOT NULL, last_worker INTEGER NOT NULL);
INSERT INTO identity VALUES (randomblob(16), {FIRST_WORKER - 1});
CREATE TABLE queues (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    claim INTEGER NOT NULL,
    redelivered INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    headers BLOB NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX claims ON messages (claim) WHERE claim <> {NOBODY};
CREATE TABLE delayed (
    queue INTEGER NOT NULL,
    due INTEGER NOT NULL,
    serial INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    headers BLOB NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (queue, due, serial)
) WITHOUT ROWID;
CREATE TABLE filler (zeros BLOB);
CREATE TABLE workers (number INTEGER PRIMARY KEY, name TEXT NOT NULL, queues TEXT NOT NULL);
"""  # noqa: S608 - only numbers of our own

# Their locks aren't the kernel's, or aren't seen by other hosts, or WAL's shared memory isn't shared.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs"),
        *("lustre", "gfs", "gfs2", "ocfs2", "beegfs", "gpfs", "davfs", "fuse.sshfs", "fuse.s3fs"),
        *("fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph", "fuse.davfs", "fuse.cephfs"),
    }
)


def first_id(queue: int) -> int:
    """The least id that a message of a queue can have."""
    return queue << PLACE_BITS


def last_id(queue: int) -> int:
    """The greatest id that a message of a queue can have."""
    return queue << PLACE_BITS | LAST_PLACE


def queue_of(id_: int) -> int:
    return id_ >> PLACE_BITS


def place_of(id_: int) -> int:
    """Since when a message has been ready: microseconds since 1970, or a little more."""
    return id_ & LAST_PLACE


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, and create it if it isn't there. Only for whoever holds the writers' lock.

    Raises:
        BrokerUnavailable: It can't be opened, or isn't ours.
    """
    connection = sqlite3.connect(
        path, timeout=5.0, isolation_level=None, check_same_thread=False, cached_statements=1024
    )
    try:
        _prepare(connection, path)
        connection.execute("PRAGMA busy_timeout = 50")  # milliseconds; whoever writes tries again
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise BrokerUnavailable(f"{path} is on a file system that lacks shared memory; choose a local disk")
    for pragma in (
        "synchronous = FULL",
        "secure_delete = OFF",  # Debian's default writes zeros over each message that is done
        "cache_size = -16000",  # kB
        f"wal_autocheckpoint = {LOG_PAGES}",
        f"journal_size_limit = {64 << 20}",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) == (APPLICATION, VERSION):
        return
    if application == APPLICATION:
        raise BrokerUnavailable(
            f"{path} has version {version}, and this Callboard knows only {VERSION}: use the Callboard that made it"
        )
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise BrokerUnavailable(
            f"{path} is an SQLite file, but not one of Callboard's: choose another folder"
        )
    connection.executescript(
        f"BEGIN;{_TABLES}PRAGMA application_id = {APPLICATION};PRAGMA user_version = {VERSION};COMMIT;"
    )


def read_identity(connection: sqlite3.Connection) -> bytes:
    """What tells this file from the next that lies in its place."""
    identity: bytes = connection.execute("SELECT id FROM identity").fetchone()[0]
    return identity


def make_folder(folder: Path) -> None:
    """Make the folder, unless it would be on another host's disk.

    Raises:
        BrokerUnavailable
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerUnavailable(f"the folder {folder} can't be made: {explain_os(error)}") from error
    kind = _file_system(folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise BrokerUnavailable(
            f"{folder} is on a network file system ({kind}), where locks can't be trusted: choose a local disk"
        )


def _file_system(folder: Path) -> str | None:
    """The type of the file system that a folder is on; None where the system doesn't say."""
    try:
        device = folder.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return None


def explain_os(error: OSError) -> str:
    """Why the system refused, in a few words."""
    if error.errno == errno.EROFS:
        return "the file system is read-only"
    return (error.strerror or str(error)).lower()


def explain(error: Exception, path: Path) -> str:
    """One sentence on why the file can't be used, and what to do."""
    if isinstance(error, BrokerUnavailable):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {path} is full: make room"
    if isinstance(error, OSError):
        return f"{error.filename or path} can't be used: {explain_os(error)}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return f"the disk that holds {path} is full: make room"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return f"{path} can't be written: make it and its folder writable for this user"
        case sqlite3.SQLITE_CANTOPEN:
            return f"{path} can't be opened: its folder must exist and be writable for this user"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"{path} is damaged or is no SQLite file: move it away, and restore it from a backup"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is locked by another program for too long: find what holds it open"
        case sqlite3.SQLITE_IOERR:
            return f"the disk that holds {path} fails: {error}"
    return f"{path} can't be used: {error}"
