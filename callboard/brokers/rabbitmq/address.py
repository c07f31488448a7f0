"""Where RabbitMQ is: a URL, taken apart into the hosts to try, one after the other.

`amqp://user:password@one:5672,two/vhost?heartbeat=20`, or several whole URLs with `;` or `,` between them.
`amqps://` verifies the server's certificate, against `cacertfile` if that is given.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import pika

from callboard.errors import SettingsError

#: Seconds. The server and we each send something at least twice in this time.
HEARTBEAT = 20

_FORM = "amqp://user:password@host:5672/vhost"
_BETWEEN_URLS = re.compile(r"[;,]\s*(?=amqps?://)")
_BETWEEN_HOSTS = re.compile(r"[;,]")
_OPTIONS = frozenset({"heartbeat", "cacertfile", "certfile", "keyfile", "server_name_indication"})


@dataclass(slots=True, frozen=True)
class Address:
    """One host to connect to. Its text never shows the password."""

    host: str
    port: int
    vhost: str
    user: str
    password: str = field(repr=False)
    tls: bool = False
    heartbeat: int = HEARTBEAT
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    server_name: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} (vhost '{self.vhost}')"

    def parameters(self, connection_name: str, *, in_a_hurry: bool = False) -> pika.ConnectionParameters:
        """What pika needs to connect. Reads certificate files, if any are named.

        Args:
            connection_name: Who we are.
            in_a_hurry: Another host can be tried, so that a send comes through within its deadline although this
                one is dead. 1.5 s allow for a first packet that was lost.
        """
        return pika.ConnectionParameters(
            host=self.host,
            port=self.port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self.user, self.password),
            heartbeat=self.heartbeat,
            connection_attempts=1,  # trying again is the link's affair
            socket_timeout=1.5 if in_a_hurry else 5,
            stack_timeout=3 if in_a_hurry else 8,
            blocked_connection_timeout=None,
            ssl_options=self._tls_options() if self.tls else None,
            client_properties={"connection_name": connection_name, "product": "Callboard"},
        )

    def _tls_options(self) -> pika.SSLOptions:
        context = ssl.create_default_context(cafile=self.cacertfile)
        if self.certfile:
            context.load_cert_chain(self.certfile, self.keyfile)
        return pika.SSLOptions(context, self.server_name or self.host)


def parse(url: str) -> tuple[Address, ...]:
    """The hosts that a URL names, in its order.

    Raises:
        SettingsError: without the password in it.
    """
    found: list[Address] = []
    for one in _BETWEEN_URLS.split(url.strip()):
        found.extend(_parse_one(one))
    return tuple(found)


def _parse_one(url: str) -> list[Address]:
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise SettingsError(f"the broker's URL can't be read: {error}; its form is {_FORM}") from None
    if parts.scheme not in ("amqp", "amqps"):
        raise SettingsError(f"'{parts.scheme}:' is no RabbitMQ URL; its form is {_FORM}")
    if not parts.netloc and parts.path.strip("/"):
        raise SettingsError(f"the broker's URL names no host; its form is {_FORM}")
    if "@" not in parts.netloc and "@" in url:
        raise SettingsError(
            f"the broker's URL can't be read; its form is {_FORM}; "
            "write '/', '?', '#' and '@' in a password or a vhost as %2F, %3F, %23 and %40"
        )
    if unknown := sorted(options.keys() - _OPTIONS):
        known = ", ".join(sorted(_OPTIONS))
        raise SettingsError(f"the broker's URL has an unknown option '{unknown[0]}'; known are {known}")
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    tls = parts.scheme == "amqps"
    found = []
    for name in _BETWEEN_HOSTS.split(hosts):
        host, port = _host_and_port(name.strip(), 5671 if tls else 5672)
        found.append(
            Address(
                host=host,
                port=port,
                vhost=unquote(parts.path[1:]) or "/",
                user=unquote(user) or "guest",
                password=unquote(password) if login else "guest",
                tls=tls,
                heartbeat=_seconds(options.get("heartbeat")),
                cacertfile=options.get("cacertfile"),
                certfile=options.get("certfile"),
                keyfile=options.get("keyfile"),
                server_name=options.get("server_name_indication"),
            )
        )
    return found


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port or default
    except ValueError as error:
        raise SettingsError(
            f"the broker's URL has a wrong host '{text}': {error}; its form is {_FORM}"
        ) from None
    return host or "localhost", port


def _seconds(text: str | None) -> int:
    if text is None:
        return HEARTBEAT
    if not text.isdigit() or not 4 <= int(text) <= 600:
        raise SettingsError(f"heartbeat={text} in the broker's URL: give whole seconds from 4 to 600")
    return int(text)
