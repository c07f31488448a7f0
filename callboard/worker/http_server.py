"""The HTTP port of a worker or a scheduler: a few short answers to GET, given by the process' own loop.

A supervisor forks, so it has no threads; and nobody who connects may hold it up. So nothing here waits: a turn
does what can be done at once. A client has a few seconds for its question and for taking the answer, and if too
many come at once, the one that has been here longest has to go. Each connection serves one request.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from callboard.errors import SettingsError
from callboard.loggers import get_logger

log = get_logger(__name__)

_PATIENCE = 5.0  # seconds, to ask and to take the answer each
_MOST_CONNECTIONS = 32
_MOST_BYTES = 8192  # of a request
_CHUNK = 1 << 16
_TURN_SECONDS = 1.0  # between two turns, in which those are dismissed who take too long


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Its text is 'HOST:PORT'."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read 'HOST:PORT', '[IPv6]:PORT', or a port alone, which is one of this machine only.

        Raises:
            SettingsError: If it is none of these.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon:
            host = "127.0.0.1"
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        known = port.isascii() and port.isdecimal() and int(port) < 1 << 16
        if not known or not host or (":" in host and not bracketed):
            raise SettingsError(
                f"'{text}' isn't an address to serve HTTP on: give HOST:PORT, such as 127.0.0.1:9191 "
                "(0.0.0.0:9191 for all networks)"
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Answer]


def verdict(problems: Sequence[str]) -> Answer:
    """What a page says that tells whether all is well."""
    if not problems:
        return Answer(b"ok\n")
    return Answer("".join(f"{problem}\n" for problem in problems).encode(), HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    ends: float
    question: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class HttpServer:
    """Listens, and answers.

    Args:
        address: Where; port 0 takes a free one.
        pages: What there is, by path.
        setting: The variable that says where, for people to mend it.

    Attributes:
        address: With the port that it has.

    Raises:
        SettingsError: If nothing can listen there.
    """

    def __init__(self, address: Address, pages: dict[str, Page], *, setting: str) -> None:
        self._pages = pages
        self._connections: dict[int, _Connection] = {}
        self._socket = _listen(address, setting)
        self.address = Address(address.host, self._socket.getsockname()[1])

    def wait(self, files: Sequence[int], seconds: float) -> list[int]:
        """Wait until one of these files can be read, and serve meanwhile; returns those that can."""
        reading, writing = [*files, *self.reading()], self.writing()
        readable, writable, _ = select.select(reading, writing, [], min(seconds, _TURN_SECONDS))
        self.turn([*readable, *writable])
        return [file for file in readable if file in files]

    def reading(self) -> list[int]:
        """The files to wait for until they can be read."""
        return [self._socket.fileno(), *(n for n, c in self._connections.items() if c.answer is None)]

    def writing(self) -> list[int]:
        """The files to wait for until they can be written."""
        return [number for number, c in self._connections.items() if c.answer is not None]

    def turn(self, ready: Sequence[int]) -> None:
        """Do what can be done with the files that are ready."""
        for number in ready:
            if number == self._socket.fileno():
                self._admit()
            elif (connection := self._connections.get(number)) is not None:
                try:
                    self._go_on(connection)
                except BlockingIOError:
                    continue
                except OSError:  # the client is gone
                    self._dismiss(connection)
        now = time.monotonic()
        for connection in [c for c in self._connections.values() if c.ends < now]:
            self._dismiss(connection)

    def close(self) -> None:
        """Stop listening, and dismiss everybody. In a forked process: its copies alone."""
        for connection in list(self._connections.values()):
            self._dismiss(connection)
        self._socket.close()

    def _admit(self) -> None:
        while True:
            try:
                admitted, _ = self._socket.accept()
            except OSError:  # nobody else, or they are gone again, or there are no files left
                return
            admitted.setblocking(False)
            if len(self._connections) >= _MOST_CONNECTIONS:
                self._dismiss(min(self._connections.values(), key=lambda c: c.ends))
            connection = _Connection(admitted, time.monotonic() + _PATIENCE)
            self._connections[admitted.fileno()] = connection

    def _dismiss(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        with suppress(OSError):
            connection.socket.close()

    def _go_on(self, connection: _Connection) -> None:
        if connection.answer is None:
            received = connection.socket.recv(_CHUNK)
            connection.question += received
            whole = b"\r\n\r\n" in connection.question or b"\n\n" in connection.question
            if not (whole or len(connection.question) > _MOST_BYTES):
                if not received:
                    self._dismiss(connection)
                return
            connection.answer = memoryview(self._answer(bytes(connection.question), whole=whole))
            connection.ends = time.monotonic() + _PATIENCE
        connection.answer = connection.answer[connection.socket.send(connection.answer[:_CHUNK]) :]
        if not connection.answer:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                connection.socket.recv(_CHUNK)  # closing over something unread would cut the answer off
            self._dismiss(connection)

    def _answer(self, question: bytes, *, whole: bool) -> bytes:
        words = question.split(b"\n", 1)[0].split()
        if not whole:
            return _encoded(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _encoded(_plain(HTTPStatus.BAD_REQUEST))
        method, path = words[0], words[1].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _encoded(_plain(HTTPStatus.METHOD_NOT_ALLOWED))
        page = self._pages.get(path)
        if page is None:
            return _encoded(_plain(HTTPStatus.NOT_FOUND, f"there are: {' '.join(self._pages)}"))
        try:
            answer = page()
        except Exception:
            log.exception("a page of the port can't be made", path=path)
            answer = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _encoded(answer, head_only=method == b"HEAD")


def _plain(status: HTTPStatus, text: str = "") -> Answer:
    return Answer(f"{text or status.phrase}\n".encode(), status)


def _encoded(answer: Answer, *, head_only: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if head_only else head + answer.body


def _listen(address: Address, setting: str) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)
            listening.bind(place)
            listening.listen(_MOST_CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingsError(
            f"nothing can listen on {address}: {reason[:1].lower()}{reason[1:]}; give another address with "
            f"--http or {setting}"
        ) from error
    return listening
