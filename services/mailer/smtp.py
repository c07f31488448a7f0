"""One mail server: how it is reached, the connections kept to it, and one delivery.

A connection is taken for one mail and given back; a burst of mails from eight threads uses at most eight. One
that lies idle for a few seconds is closed, and one that the server has dropped meanwhile is replaced.
"""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakSet

from callboard.errors import CallboardError, Permanent, SettingsError

_VARIABLE = "CALLBOARD_MAIL_URL"


class MailNotConfigured(SettingsError, Permanent):
    """No mail can be sent before a setting is made or mended; the message says which."""


class MailTemporary(CallboardError):
    """The mail wasn't accepted this time: no connection, or the server answered 4xx. Try again later."""


class MailRejected(Permanent):
    """The server refused the mail for good, with 5xx; the message is its answer."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """How a mail server is reached. A log-in without TLS can't be expressed."""

    host: str
    port: int
    tls: Literal["from the start", "starttls", "none"]
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str | None = None

    @classmethod
    def parse(cls, url: str) -> MailServer:
        """From `smtp://user:password@host:587` (STARTTLS is required) or `smtps://...:465` (TLS at once).

        `?starttls=never` speaks in the clear, without log-in; `?ca=FILE` trusts that authority only.

        Raises:
            MailNotConfigured: the URL is malformed, or would send a password in the clear.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        except ValueError:
            # Without the cause: its text, and so the traceback, may show the password.
            raise MailNotConfigured(f"{_VARIABLE} is no URL: its port or its query is malformed") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise MailNotConfigured(
                f"{_VARIABLE} must look like smtp://user:password@host:587 or smtps://host"
            )
        starttls = query.pop("starttls", "required")
        ca_file = query.pop("ca", None)
        if query or starttls not in ("required", "never"):
            raise MailNotConfigured(
                f"{_VARIABLE} takes ?starttls=required or never, and ?ca=FILE, nothing else"
            )
        plain = parts.scheme == "smtp" and starttls == "never"
        if plain and parts.username:
            raise MailNotConfigured(
                f"{_VARIABLE} would send the password in the clear: remove starttls=never"
            )
        return cls(
            host=parts.hostname,
            port=port or (465 if parts.scheme == "smtps" else 587),
            tls="none" if plain else "from the start" if parts.scheme == "smtps" else "starttls",
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            ca_file=ca_file,
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SmtpConnections:
    """Delivers mails to one server.

    In seconds: `timeout` is the wait for each answer, `idle` how long an unused connection is kept.
    """

    def __init__(self, server: MailServer, *, timeout: float = 30, idle: float = 5) -> None:
        self._server = server
        self._timeout = timeout
        self._idle_limit = idle
        self._lock = threading.Lock()
        self._idle: list[tuple[float, smtplib.SMTP]] = []
        self._closer: threading.Timer | None = None
        _everywhere.add(self)

    def deliver(self, sender: str, recipients: Sequence[str], message: bytes) -> dict[str, str]:
        """Hand `message` over; returns the recipients that were refused for good, with the server's answers.

        A recipient that is only put off (4xx) puts off the whole mail before any of it is sent, so that the
        next attempt can't reach anybody twice.

        Raises:
            MailTemporary: not accepted this time. After a connection that broke at the very end, the server
                may have it all the same; then the next attempt repeats it.
            MailRejected: refused, or no recipient was accepted.
            MailNotConfigured: the server lacks the TLS or the log-in that the settings ask for.
        """
        with self._explaining(), self._connection() as connection:
            options = [f"size={len(message)}"] if connection.has_extn("size") else []
            _expect("the sender", connection.mail(sender, options))
            refused: dict[str, str] = {}
            put_off: dict[str, str] = {}
            for recipient in recipients:
                code, answer = connection.rcpt(recipient)
                if not 200 <= code < 300:
                    (refused if 500 <= code < 600 else put_off)[recipient] = f"{code} {_text(answer)}"
            if put_off:
                raise MailTemporary(f"{self._server} put off {_listed(put_off)}; nothing was sent")
            if len(refused) == len(recipients):
                raise MailRejected(f"{self._server} refused {_listed(refused)}")
            _expect("the mail", connection.data(message))
            return refused

    def close(self) -> None:
        """Say good-bye on every idle connection."""
        with self._lock:
            idle, self._idle = self._idle, []
            if self._closer:
                self._closer.cancel()
        for _, connection in idle:
            _dismiss(connection)

    @contextmanager
    def _connection(self) -> Iterator[smtplib.SMTP]:
        connection = self._take() or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append((time.monotonic(), connection))
        self._close_later()

    def _take(self) -> smtplib.SMTP | None:
        """An idle connection that still answers."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            if time.monotonic() - since < self._idle_limit:
                with suppress(OSError):
                    if connection.rset()[0] == 250:
                        return connection
            connection.close()

    def _connect(self) -> smtplib.SMTP:
        server = self._server
        # Without a name of ours, smtplib would ask the DNS for one, which can take seconds.
        us, timeout = socket.gethostname() or "localhost", self._timeout
        if server.tls != "from the start":
            return self._log_in(smtplib.SMTP(server.host, server.port, us, timeout))
        return self._log_in(
            smtplib.SMTP_SSL(server.host, server.port, us, timeout=timeout, context=self._tls())
        )

    def _log_in(self, connection: smtplib.SMTP) -> smtplib.SMTP:
        try:
            if self._server.tls == "starttls":
                connection.starttls(context=self._tls())
            connection.ehlo_or_helo_if_needed()
            if self._server.user:
                connection.login(self._server.user, self._server.password)
        except BaseException:
            connection.close()
            raise
        return connection

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._server.ca_file)
        except OSError as error:
            raise MailNotConfigured(f"{_VARIABLE}: can't use ca={self._server.ca_file}: {error}") from error

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn what smtplib and the socket raise into one of our three errors."""
        server = self._server
        try:
            yield
        except smtplib.SMTPNotSupportedError as error:
            hint = "" if server.user else "; for a server inside your own network, add ?starttls=never"
            raise MailNotConfigured(
                f"{_VARIABLE}: {server} can't do what it asks for: {error}{hint}"
            ) from error
        except smtplib.SMTPAuthenticationError as error:
            kind = MailRejected if error.smtp_code >= 500 else MailTemporary
            raise kind(f"{server} refused the log-in of {_VARIABLE}: {_answer(error)}") from error
        except smtplib.SMTPResponseException as error:
            kind = MailRejected if 500 <= error.smtp_code < 600 else MailTemporary
            raise kind(f"{server} answered {_answer(error)}") from error
        except OSError as error:  # smtplib's other exceptions are OSErrors too
            raise MailTemporary(f"no mail to {server}: {str(error) or type(error).__name__}") from error

    def _close_later(self) -> None:
        with self._lock:
            if self._closer is None and self._idle:
                self._closer = threading.Timer(self._idle_limit, self._close_stale)
                self._closer.name = "callboard-mail-closer"
                self._closer.daemon = True
                self._closer.start()

    def _close_stale(self) -> None:
        oldest = time.monotonic() - self._idle_limit
        with self._lock:
            stale = [connection for since, connection in self._idle if since <= oldest]
            self._idle = [entry for entry in self._idle if entry[0] > oldest]
            self._closer = None
        for connection in stale:
            _dismiss(connection)
        self._close_later()

    def _forget_after_fork(self) -> None:
        """The connections are the parent's: close our copies without a word to the server."""
        for _, connection in self._idle:
            connection.close()
        self._idle = []
        self._lock = threading.Lock()
        self._closer = None


def _expect(what: str, answer: tuple[int, bytes]) -> None:
    code, text = answer
    if not 200 <= code < 300:
        raise smtplib.SMTPResponseException(code, f"to {what}: {_text(text)}")


def _answer(error: smtplib.SMTPResponseException) -> str:
    return f"{error.smtp_code} {_text(error.smtp_error)}"


def _text(answer: bytes | str) -> str:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return " ".join(text.split())


def _listed(refused: dict[str, str]) -> str:
    return "; ".join(f"{recipient}: {answer}" for recipient, answer in refused.items())


def _dismiss(connection: smtplib.SMTP) -> None:
    with suppress(OSError):
        connection.quit()
    connection.close()


_everywhere: WeakSet[SmtpConnections] = WeakSet()


def _forget_all_after_fork() -> None:
    for connections in list(_everywhere):
        connections._forget_after_fork()


os.register_at_fork(after_in_child=_forget_all_after_fork)
