"""The proxy does to a connection what it is told, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from callboard.servers.proxy import FaultProxy

PATIENCE = 30.0


class Echo:
    """A server that says back what it hears."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self.ended = threading.Semaphore(0)  # connections that have
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    self.heard += data
                    connection.sendall(data)
            except OSError:
                pass
            self.ended.release()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        assert ask(client, b"hello") == b"hello"
        yield client


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return hear(client, len(data))


def hear(client: socket.socket, size: int) -> bytes:
    heard = b""
    while len(heard) < size:
        data = client.recv(65_536)
        if not data:
            break
        heard += data
    return heard


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE)
    return False


def test_it_forwards_both_ways_and_the_end(proxy: FaultProxy, client: socket.socket, echo: Echo) -> None:
    data = bytes(range(256)) * 4000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert hear(client, len(data)) == data
    sender.join()
    assert proxy.connections == proxy.accepted == 1
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert echo.ended.acquire(timeout=PATIENCE)


def test_the_url_leads_through_it(proxy: FaultProxy) -> None:
    assert proxy.url("amqp://guest:guest@127.0.0.1:5672/%2F?heartbeat=4") == (
        f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2F?heartbeat=4"
    )
    assert proxy.url("redis://127.0.0.1:6379/0") == f"redis://127.0.0.1:{proxy.port}/0"


def test_a_cut_resets_both_sides_and_lets_new_ones_in(
    proxy: FaultProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert echo.ended.acquire(timeout=PATIENCE)
    with connect(proxy) as another:
        assert ask(another, b"again") == b"again"


def test_who_is_refused_gets_in_after_it_is_healed(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises((ConnectionResetError, BrokenPipeError)), connect(proxy) as another:
        another.sendall(b"anybody?")
        another.recv(1)
    proxy.heal()
    with connect(proxy) as another:
        assert ask(another, b"again") == b"again"


@pytest.mark.parametrize("direction", ["to server", "to client", "both"])
def test_what_is_stalled_arrives_when_it_is_healed(
    proxy: FaultProxy, client: socket.socket, echo: Echo, direction: str
) -> None:
    proxy.stall(direction)  # type: ignore[arg-type]  # it is one of the three
    client.sendall(b"late")
    assert hears_nothing(client)
    assert (b"late" in echo.heard) is (direction == "to client")
    proxy.heal()
    assert hear(client, 4) == b"late"


def test_a_half_open_connection_is_dead_and_nobody_is_told(
    proxy: FaultProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.half_open()
    client.sendall(b"into nothing")
    assert hears_nothing(client)
    assert echo.heard == b"hello"
    assert proxy.connections == 0
    with connect(proxy) as another:
        assert ask(another, b"again") == b"again"
    proxy.heal()
    client.sendall(b"still")
    assert hears_nothing(client)


def test_latency_and_bandwidth_take_their_time(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.slow(latency=0.1)
    start = time.monotonic()
    assert ask(client, b"slowly") == b"slowly"
    assert time.monotonic() - start >= 0.2
    proxy.slow(bandwidth=20_000)
    start = time.monotonic()
    assert ask(client, b"x" * 4000) == b"x" * 4000
    assert time.monotonic() - start >= 0.2
    proxy.heal()
    assert ask(client, b"quickly") == b"quickly"


def test_nobody_behind_it_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with FaultProxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)


def test_closing_twice_is_harmless(echo: Echo) -> None:
    proxy = FaultProxy(echo.port)
    with proxy:
        pass
    proxy.close()
