"""A private PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from callboard.servers.process import HOST, PrivateServer, ServerFailed

USER = "postgres"


class PrivatePostgresql(PrivateServer):
    """A PostgreSQL from Debian's `postgresql`, with the superuser `postgres` and no password.

    As root it runs as the user `postgres` or `nobody`, since PostgreSQL refuses to run as root.

    Args:
        folder: where data and logs go; None makes one that `close` removes.
    """

    name = "postgresql"
    package = "postgresql"

    def __init__(self, folder: Path | None = None) -> None:
        # Debian keeps each version's programs in a folder of its own, outside PATH.
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self._folders = [str(path) for path in reversed(versions)]
        self._server = self._program("postgres", *self._folders)
        self._runs_as = _other_than_root()
        super().__init__(folder)

    @property
    def url(self) -> str:
        return self.database_url(USER)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def database_url(self, database: str) -> str:
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._run("createdb", "-h", HOST, "-p", str(self.port), "-U", USER, name)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off whoever is still connected to it."""
        self._run("dropdb", "--force", "--if-exists", "-h", HOST, "-p", str(self.port), "-U", USER, name)

    def _prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        if self._runs_as is not None:
            shutil.chown(self.folder, self._runs_as)
        initialise = [self._program("initdb", *self._folders), "--pgdata", str(self.data), "--username", USER]
        process = self._spawn(
            [*initialise, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"],
            self._environment(),
            user=self._runs_as,
        )
        if process.wait():
            raise ServerFailed(f"initdb failed; it printed:\n{self._last_output()}")

    def _command(self) -> list[str]:
        return [self._server, "-D", str(self.data), "-h", HOST, "-p", str(self.port), "-k", str(self.folder)]

    def _spawn_server(self) -> None: ...

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - a command of our own making
            [self._program(program, *self._folders), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ServerFailed(f"{program} failed: {done.stderr.strip()}")
