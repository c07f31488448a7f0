"""A mail server on a free loopback port, in a thread of its own, that does as a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Sink:
    """What arrived, and what to answer."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    answer_rcpt: Callable[[str], str] = lambda address: "250 OK"
    answer_data: str = "250 OK"
    password: bytes | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, timeout=30)

    def drop_all(self) -> None:
        for connection in list(self.connections):
            connection.loop.call_soon_threadsafe(connection.drop)
        self.wait_until(lambda: all(connection.closed for connection in self.connections))


class Handler:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self._sink.answer_rcpt(address)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        if self._sink.answer_data.startswith("250"):
            self._sink.envelopes.append(envelope)
            self._sink.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return self._sink.answer_data


class Connection(SMTP):
    sink: Sink
    closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self not in self.sink.connections:  # STARTTLS makes it a second time
            self.sink.connections.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        with self.sink.changed:
            self.closed = True
            self.sink.changed.notify_all()

    def drop(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            with contextlib.suppress(
                AttributeError
            ):  # Python 3.11.2: of a TLS transport that has closed already
                self.transport.abort()


@contextmanager
def smtp_sink(
    *,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    password: bytes | None = None,
    size_limit: int = 33_554_432,
) -> Iterator[Sink]:
    """A running server; `tls` from the first byte, or `starttls` on offer."""
    sink = Sink(password=password)

    def check(
        server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        sink.logins.append((data.login, data.password))
        return AuthResult(success=data.password == sink.password, handled=False)

    def connect() -> Connection:
        connection = Connection(
            Handler(sink),
            loop=loop,
            hostname="sink",
            tls_context=starttls,
            authenticator=check if password else None,
            auth_require_tls=starttls is not None,
            data_size_limit=size_limit,
        )
        connection.sink = sink
        return connection

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(connect, "127.0.0.1", 0, ssl=tls))
    sink.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="smtp-sink")
    thread.start()
    try:
        yield sink
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_close(server, sink))
        loop.close()


async def _close(server: asyncio.Server, sink: Sink) -> None:
    server.close()
    for connection in sink.connections:
        connection.drop()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
