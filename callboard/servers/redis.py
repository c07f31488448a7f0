"""A private Redis."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from callboard.servers.process import HOST, PrivateServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class PrivateRedis(PrivateServer):
    """A Redis from Debian's `redis-server`.

    Args:
        folder: where data and logs go; None makes one that `close` removes.
        append_only: write each change to a file, fsynced once a second, so that data outlives `kill`. Without
            it, what `stop` and `kill` leave is nothing.
        options: more settings, as redis.conf has them.
        program: another server that speaks as Redis does.
    """

    name = "redis"
    package = "redis-server"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        append_only: bool = False,
        options: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self._server = str(program or self._program("redis-server"))
        self._append_only = append_only
        self._options = options or {}
        super().__init__(folder)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def empty(self) -> None:
        """Drop everything it holds."""
        self._ask("FLUSHALL")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Have it refuse every change, as a replica does while its primary is replaced."""
        self._ask(f"REPLICAOF {HOST} 1")  # where nobody listens
        try:
            yield
        finally:
            self._ask("REPLICAOF NO ONE")

    def _command(self) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "everysec",
            **self._options,
        }
        return [self._server, *(word for key, value in options.items() for word in (f"--{key}", value))]

    def _answers(self) -> bool:
        return self._ask("PING") == "+PONG"  # -LOADING while it reads its file

    def _ask(self, command: str) -> str:
        with socket.create_connection((HOST, self.port), timeout=30) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.makefile().readline().strip()
