"""The rigs of the suites: a broker on each driver, its jobs run by each worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest

from callboard.servers import PrivateRabbitmq
from tests.conformance.drivers import DRIVERS
from tests.conformance.rig import WORKERS, Rig, dismantle, make_rig


@pytest.fixture(scope="module")
def shared_vhost(rabbitmq: PrivateRabbitmq) -> Iterator[str]:
    """One for all tests: to build the ladder of delays anew for each would take longer than the test."""
    vhost = f"brokers-{uuid.uuid4().hex}"
    yield rabbitmq.add_vhost(vhost)
    rabbitmq.delete_vhost(vhost)


@pytest.fixture(params=[f"{driver}-{worker}" for driver in DRIVERS for worker in WORKERS])
def rigs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Makes rigs with options for their broker."""
    driver_name, worker_name = request.param.split("-")
    open_driver = DRIVERS[driver_name](request)
    # On Redis the store lies there, too: so these rules are seen to hold on both stores.
    store_url = request.getfixturevalue("redis_url") if driver_name == "redis" else "memory:"
    made: list[Rig] = []

    def make(**broker_options: Any) -> Rig:
        rig = make_rig(driver_name, worker_name, open_driver, store_url=store_url, **broker_options)
        # As an application's broker.py does: Dramatiq's pipelines and groups go to the global broker.
        monkeypatch.setattr(dramatiq.broker, "global_broker", rig.broker)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        dismantle(rig)


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()
