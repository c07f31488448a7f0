"""A private PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path

from callboard.servers.process import HOST, PrivateServer, ServerFailed

USER = "postgres"


class PrivatePostgresql(PrivateServer):
    """A PostgreSQL from Debian's `postgresql`, with the superuser `postgres` and no password.

    Started by root it runs as the user `postgres` or `nobody`, since it refuses to run as root.
    """

    name = "postgresql"
    package = "postgresql"
    _stop_signal = signal.SIGINT  # a "fast" shutdown; SIGTERM would wait until every client has left

    def __init__(self, folder: Path | None = None) -> None:
        # Debian keeps each version's programs in a folder of its own, outside PATH.
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self._folders = [str(path) for path in reversed(versions)]
        self._server = self._program("postgres", *self._folders)
        self._runs_as = _someone_other_than_root()
        super().__init__(folder)

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._run("createdb", name)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off whoever is still connected to it."""
        self._run("dropdb", "--force", "--if-exists", name)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare(self) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        if self._runs_as is not None:
            shutil.chown(self.folder, self._runs_as)
        initdb = [self._program("initdb", *self._folders), "--pgdata", str(self._data), "--username", USER]
        options = ["--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        if self._spawn([*initdb, *options], self._environment()).wait():
            raise ServerFailed(f"initdb failed; it printed:\n{self._last_output()}")

    def _command(self) -> list[str]:
        no_unix_socket = ["-c", "unix_socket_directories="]
        return [self._server, "-D", str(self._data), "-h", HOST, "-p", str(self.port), *no_unix_socket]

    def _answers(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            hello = struct.pack("!i", 0x00030000) + f"user\0{USER}\0\0".encode()  # protocol 3.0
            connection.sendall(struct.pack("!i", len(hello) + 4) + hello)
            return connection.recv(1) == b"R"  # "authenticated"; while it starts it says E, an error

    def _run(self, program: str, *arguments: str) -> None:
        where = ["-h", HOST, "-p", str(self.port), "-U", USER]
        done = subprocess.run(  # noqa: S603 - a command of our own making
            [self._program(program, *self._folders), *where, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"{program} failed: {done.stderr.strip()}")


def _someone_other_than_root() -> int | None:
    if os.geteuid() != 0:
        return None
    for name in (USER, "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise ServerFailed("PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'")
