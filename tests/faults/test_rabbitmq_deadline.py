"""A send to RabbitMQ returns or raises within its deadline, whatever stands still, and says what is known."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from dramatiq import Message

from callboard.brokers.base import Broker
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.envelope import new_job_id
from callboard.errors import FateUnknown, NotQueued, PartlySent, SendError
from callboard.servers import PrivateRabbitmq
from tests.closing import closing_all

DEADLINE = 1.0
#: A busy machine may wake a waiting thread late; one that waits for a connection would take minutes.
LATEST = DEADLINE + 5.0

Open = Callable[..., Broker]
Send = Callable[[Broker, int], list[Message[Any]]]


@pytest.fixture
def open_broker() -> Iterator[Open]:
    def new(url: str, *, deadline: float = DEADLINE) -> Broker:
        return Broker(RabbitmqDriver(url), send_deadline=deadline)

    with closing_all(new) as open_one:
        yield open_one


@pytest.fixture(scope="module")
def node(installed: Callable[[Callable[[], PrivateRabbitmq]], PrivateRabbitmq]) -> Iterator[PrivateRabbitmq]:
    """A node to block and to freeze, for the tests of this file."""
    with installed(PrivateRabbitmq) as node:
        yield node


def jobs(count: int) -> list[Message[Any]]:
    return [Message("mail.high", "note", (), {"number": n}, {}, new_job_id(), 1) for n in range(count)]


def _blocking(broker: Broker, count: int) -> list[Message[Any]]:
    return broker.enqueue_many(jobs(count))


def _awaiting(broker: Broker, count: int) -> list[Message[Any]]:
    return asyncio.run(broker.enqueue_many_async(jobs(count)))


@pytest.fixture(params=[_blocking, _awaiting], ids=["send", "send_async"])
def send(request: pytest.FixtureRequest) -> Send:
    function: Send = request.param
    return function


def failure(send: Send, broker: Broker, count: int = 1) -> SendError:
    started = time.monotonic()
    with pytest.raises(SendError) as caught:
        send(broker, count)
    assert 0.9 * DEADLINE <= time.monotonic() - started <= LATEST
    return caught.value


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers no SYN, as a host that isn't there: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@contextmanager
def mute() -> Iterator[int]:
    """A port that takes connections, and never says a word."""
    taken: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        listener.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    taken.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()
            for connection in taken:
                connection.close()


def test_a_host_that_cannot_be_reached(open_broker: Open, send: Send) -> None:
    with black_hole() as port:
        broker = open_broker(f"amqp://127.0.0.1:{port}/")
        error = failure(send, broker)
        assert isinstance(error, NotQueued)
        assert f"127.0.0.1:{port}" in str(error)
        assert error.job_id
        broker.close()


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_server_that_never_says_a_word(open_broker: Open, send: Send, scheme: str) -> None:
    """With TLS it is the handshake that stalls."""
    with mute() as port:
        broker = open_broker(f"{scheme}://127.0.0.1:{port}/")
        error = failure(send, broker, 3)
        assert isinstance(error, NotQueued)
        assert "not queued" in str(error)
        assert f"127.0.0.1:{port}" in str(error)
        broker.close()


def test_hosts_that_are_dead_leave_time_for_the_next(open_broker: Open, amqp_url: str) -> None:
    """With one host a connection may take five seconds; with more, each has a part of the deadline."""
    parts = urlsplit(amqp_url)
    with black_hole() as port:
        hosts = f"127.0.0.1:{port},127.0.0.1:{port},{parts.hostname}:{parts.port}"
        broker = open_broker(f"amqp://guest:guest@{hosts}{parts.path}", deadline=30.0)
        started = time.monotonic()
        assert len(_blocking(broker, 1)) == 1
        assert time.monotonic() - started < 9.0


def test_a_connection_that_is_blocked_before_it_has_sent_anything(
    open_broker: Open, send: Send, node: PrivateRabbitmq
) -> None:
    """RabbitMQ tells a connection of an alarm when it first publishes: that one message may be queued later."""
    node.set_memory_alarm(True)
    try:
        broker = open_broker(node.url)
        error = failure(send, broker)
        assert isinstance(error, NotQueued | FateUnknown)
        end = time.monotonic() + 60
        while not isinstance(error, NotQueued) and time.monotonic() < end:
            error = failure(send, broker)
        assert isinstance(error, NotQueued), "it was told, and writes nothing more"
        assert "takes no messages now: low on memory" in str(error)
    finally:
        node.set_memory_alarm(False)
    patient = open_broker(node.url, deadline=60.0)
    assert len(send(patient, 2)) == 2


def test_a_confirm_that_never_comes(open_broker: Open, send: Send, node: PrivateRabbitmq) -> None:
    ready = open_broker(node.url, deadline=60.0)
    send(ready, 1)
    broker = open_broker(node.url)
    broker.driver.ping()
    broker.driver.put([], deadline=1.0)
    ready._send_deadline = DEADLINE
    with node.frozen():
        error = failure(send, ready)
        assert isinstance(error, FateUnknown)
        assert error.job_id in str(error)
        assert "didn't confirm within 1 s" in str(error)
        many = failure(send, ready, 3)
        assert isinstance(many, PartlySent)
        assert len(many.unknown) == 3
        # Its queue has to be declared first, and that isn't answered either.
        assert isinstance(failure(send, broker), NotQueued)
    ready._send_deadline = 60.0
    assert len(send(ready, 1)) == 1
