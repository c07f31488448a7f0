"""The worker's HTTP port."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from callboard.errors import SettingsError
from callboard.worker import http_server as http_server_module
from callboard.worker.http_server import Address, Answer, HttpServer

PATIENCE = 30.0


def _fail() -> Answer:
    raise RuntimeError("no page")


PAGES: dict[str, Callable[[], Answer]] = {
    "/page": lambda: Answer(b"hello\n"),
    "/ill": lambda: Answer(b"so ill\n", HTTPStatus.SERVICE_UNAVAILABLE),
    "/large": lambda: Answer(b"x" * 5_000_000),
    "/failing": _fail,
}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer(Address("127.0.0.1", 0), PAGES, setting="CALLBOARD_WORKER_HTTP")
    yield server
    server.close()


def _turn(server: HttpServer, seconds: float = 0.01) -> None:
    readable, writable, _ = select.select(server.reading(), server.writing(), [], seconds)
    server.turn([*readable, *writable])


def _connect(server: HttpServer) -> socket.socket:
    client = socket.create_connection((server.address.host, server.address.port), PATIENCE)
    client.setblocking(False)
    return client


def _said(server: HttpServer, client: socket.socket) -> bytes:
    """All that the client is told, while the server does its turns."""
    said, end = bytearray(), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        _turn(server)
        try:
            part = client.recv(1 << 16)
        except BlockingIOError:
            continue
        if not part:
            return bytes(said)
        said += part
    raise AssertionError(f"the connection wasn't closed: {bytes(said[:200])!r}")


def _ask(server: HttpServer, question: str) -> tuple[int, dict[str, str], bytes]:
    with _connect(server) as client:
        client.send(question.replace("\n", "\r\n").encode())
        head, _, body = _said(server, client).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def test_pages_are_served_with_their_status(server: HttpServer) -> None:
    status, headers, body = _ask(server, "GET /page?all=1 HTTP/1.1\nHost: here\n\n")
    assert (status, body, headers["Content-Length"]) == (200, b"hello\n", "6")
    assert _ask(server, "GET /ill HTTP/1.0\n\n")[::2] == (503, b"so ill\n")


def test_head_tells_of_a_page_without_it(server: HttpServer) -> None:
    status, headers, body = _ask(server, "HEAD /page HTTP/1.1\nHost: here\n\n")
    assert (status, headers["Content-Length"], body) == (200, "6", b"")


@pytest.mark.parametrize(
    ("question", "status"),
    [
        ("POST /page HTTP/1.1\nContent-Length: 3\n\nabc", 405),
        ("GET /nothing HTTP/1.1\n\n", 404),
        ("GET /../page HTTP/1.1\n\n", 404),
        ("GET /page\n\n", 400),
        ("nonsense\n\n", 400),
        ("\n\n", 400),
        ("GET /failing HTTP/1.1\n\n", 500),
        (f"GET /page HTTP/1.1\nCookie: {'c' * 20_000}", 431),
    ],
)
def test_what_can_t_be_answered_is_told_so(question: str, status: int, server: HttpServer) -> None:
    assert _ask(server, question)[0] == status
    assert _ask(server, "GET /page HTTP/1.1\n\n")[0] == 200


def test_a_large_page_arrives_whole_at_a_slow_reader(server: HttpServer) -> None:
    assert len(_ask(server, "GET /large HTTP/1.1\n\n")[2]) == 5_000_000


def test_a_client_that_says_nothing_holds_nobody_up_and_is_dismissed(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server_module, "_PATIENCE", 0.5)
    with _connect(server) as silent, _connect(server) as slow:
        slow.send(b"GET /page HT")
        _turn(server)
        began = time.monotonic()
        monkeypatch.setattr(http_server_module, "_PATIENCE", PATIENCE)
        assert _ask(server, "GET /page HTTP/1.1\n\n")[0] == 200
        assert _said(server, silent) == b""
        assert _said(server, slow) == b""
        assert time.monotonic() - began < PATIENCE / 2
    assert server.writing() == []
    assert len(server.reading()) == 1


def test_a_client_that_doesn_t_take_its_answer_holds_nobody_up(server: HttpServer) -> None:
    with _connect(server) as greedy:
        greedy.send(b"GET /large HTTP/1.1\r\n\r\n")
        while not server.writing():
            _turn(server)
        assert _ask(server, "GET /page HTTP/1.1\n\n")[0] == 200


def test_of_too_many_clients_the_first_has_to_go(server: HttpServer) -> None:
    clients = []
    try:
        for _ in range(60):
            clients.append(_connect(server))
            _turn(server, PATIENCE)
        assert _ask(server, "GET /page HTTP/1.1\n\n")[0] == 200
        assert len(server.reading()) <= 33
        assert _said(server, clients[0]) == b""
    finally:
        for client in clients:
            client.close()


def test_a_client_that_hangs_up_is_forgotten(server: HttpServer) -> None:
    client = _connect(server)
    _turn(server, PATIENCE)
    client.close()
    end = time.monotonic() + PATIENCE
    while len(server.reading()) > 1:
        assert time.monotonic() < end
        _turn(server)


def test_a_port_in_use_is_refused_with_a_sentence(server: HttpServer) -> None:
    with pytest.raises(
        SettingsError,
        match=r"^nothing can listen on 127\.0\.0\.1:\d+: address already in use; give another address",
    ):
        HttpServer(server.address, PAGES, setting="CALLBOARD_WORKER_HTTP")


def test_an_address_that_isn_t_this_machine_s_is_refused_with_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^nothing can listen on 192\.0\.2\.1:0: cannot assign"):
        HttpServer(Address("192.0.2.1", 0), PAGES, setting="CALLBOARD_WORKER_HTTP")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9191", Address("127.0.0.1", 9191)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("9191", Address("127.0.0.1", 9191)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9191", Address("::1", 9191)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", [":9191", "here", "127.0.0.1:", "127.0.0.1:http", "::1:9191", "h:70000", "h:-1", ""]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"give HOST:PORT, such as 127\.0\.0\.1:9191"):
        Address.parse(text)
