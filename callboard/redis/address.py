"""Where Redis is: a URL, taken apart.

`redis://user:password@host:6379/0`, `unix://user:password@/path/of/socket?db=0`, or `rediss://` for TLS, which
verifies the server's certificate, against `ssl_ca_certs` if that is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import redis.connection
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from callboard.errors import SettingsError

#: One of redis-py's connections, whose own types are too sparse to check anything by.
Connection = Any

_FORM = "redis://user:password@host:6379/0"
_OPTIONS = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


@dataclass(slots=True, frozen=True)
class Address:
    """One server, and who we are to it. Its text never shows the password."""

    kind: str  # 'redis', 'rediss' or 'unix'
    host: str
    port: int
    path: str
    db: int
    user: str
    password: str = field(repr=False)
    tls_files: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.path or f'{host}:{self.port}'} (db {self.db})"

    def connection(self, timeout: float) -> Connection:
        """A connection that isn't open yet, and says nothing by itself when it is opened."""
        made: dict[str, Any] = {
            "redis": redis.connection.Connection,
            "rediss": redis.connection.SSLConnection,
            "unix": redis.connection.UnixDomainSocketConnection,
        }

        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),  # trying again is the link's affair
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.kind == "unix":
            options["path"] = self.path
        else:
            options |= {"host": self.host, "port": self.port, **dict(self.tls_files)}
        return made[self.kind](**options)


def parse(url: str, whose: str = "broker") -> Address:
    """The server that a URL names.

    Args:
        url: The URL.
        whose: Whose it is, for the error: 'broker' or 'store'.

    Raises:
        SettingsError: without the password in it.
    """
    try:
        parts = urlsplit(url)
        found = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
        port = int(found.get("port") or 6379)
    except ValueError:  # whose text may show part of a password
        raise _unreadable(whose) from None
    if "@" in url and "@" not in parts.netloc and parts.scheme != "unix":
        raise _unreadable(whose)
    known = {"connection_class", "host", "port", "path", "username", "password"} | _OPTIONS
    if unknown := sorted(found.keys() - known):
        raise SettingsError(
            f"the {whose}'s URL has an unknown option '{unknown[0]}'; known are {', '.join(sorted(_OPTIONS))}"
        )
    if parts.scheme == "unix" and not found.get("path"):
        raise SettingsError(f"the {whose}'s URL names no socket; its form is unix:///path/of/socket?db=0")
    tail = parts.path.strip("/")
    if parts.scheme != "unix" and tail and "db" not in found:
        raise SettingsError(f"'/{tail}' in the {whose}'s URL is no database's number; its form is {_FORM}")
    return Address(
        kind=parts.scheme,
        host=found.get("host", "localhost"),
        port=port,
        path=found.get("path", ""),
        db=int(found.get("db", 0)),
        user=found.get("username", ""),
        password=found.get("password", ""),
        tls_files=tuple((name, str(found[name])) for name in sorted(_OPTIONS - {"db"}) if name in found),
    )


def _unreadable(whose: str) -> SettingsError:
    return SettingsError(
        f"the {whose}'s URL can't be read; its form is {_FORM}; "
        "write '/', '@' and ':' in a password as %2F, %40 and %3A"
    )
