"""How the rigs of the suites come to their drivers. One joins by a line in `DRIVERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from callboard.brokers.driver import Driver


def _file(request: pytest.FixtureRequest) -> Callable[[], Driver]:
    from callboard.brokers.file import FileDriver

    return partial(FileDriver, request.getfixturevalue("tmp_path") / "var")


def _rabbitmq(request: pytest.FixtureRequest) -> Callable[[], Driver]:
    from callboard.brokers.rabbitmq import RabbitmqDriver

    return partial(RabbitmqDriver, request.getfixturevalue("shared_vhost"))


def _redis(request: pytest.FixtureRequest) -> Callable[[], Driver]:
    from callboard.brokers.redis import RedisDriver

    return partial(RedisDriver, request.getfixturevalue("redis_url"), lease=1.0)


def _stub(request: pytest.FixtureRequest) -> Callable[[], Driver]:
    from callboard.brokers.stub import StubDriver

    driver = StubDriver()
    return lambda: driver


DRIVERS: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Driver]]] = {
    "file": _file,
    "rabbitmq": _rabbitmq,
    "redis": _redis,
    "stub": _stub,
}
