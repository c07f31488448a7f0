"""A pytest plugin for people who write actors: the fixture `jobs`.

    def test_the_invoice_is_mailed(jobs, outbox):
        send_invoice.send(invoice_id=42, to="ada@example.org")
        jobs.drain()
        assert [mail.to for mail in outbox] == ["ada@example.org"]

The life of a test: the fixture lends the application's broker queues in memory, a store in memory and a clock
that stands, and takes them back afterwards. A send goes its whole way, into bytes. Then nothing happens until
the test asks for it: `drain` claims, reads and runs what waits, in the test's own thread, between the hooks
of the application's whole middleware, and moves the clock to where the next job is due.

pytest loads this module in every environment that has Callboard, so it imports next to nothing: its names come
when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from callboard.brokers.base import Broker
    from callboard.testing.clock import Clock
    from callboard.testing.drained import Drained
    from callboard.testing.failures import JobDied, NeverCrashed, NeverDrained
    from callboard.testing.harness import Jobs, jobs_of
    from callboard.testing.waiting import WaitingJob

__all__ = ["Clock", "Drained", "JobDied", "Jobs", "NeverCrashed", "NeverDrained", "WaitingJob", "jobs_of"]

_HOMES = {
    "clock": ("Clock",),
    "drained": ("Drained",),
    "failures": ("JobDied", "NeverCrashed", "NeverDrained"),
    "harness": ("Jobs", "jobs_of"),  # not `jobs`: that is the fixture
    "waiting": ("WaitingJob",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'callboard.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(f"callboard.testing.{_HOME_OF[name]}"), name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("callboard_broker", "The module that has the application's `broker`.", default="broker")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Make the application importable from the folder that has its broker, as it is for its commands."""
    name = early_config.getini("callboard_broker").partition(".")[0]
    for folder in (early_config.rootpath, early_config.invocation_params.dir):
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return


@pytest.fixture(scope="session")
def callboard_broker(pytestconfig: pytest.Config) -> Broker:
    """The application's broker: `broker` of the module that the ini option `callboard_broker` names, which is
    `broker` by default. Override this fixture where it comes from elsewhere."""
    from callboard.brokers.base import Broker

    name = pytestconfig.getini("callboard_broker")
    broker = getattr(importlib.import_module(name), "broker", None)
    if not isinstance(broker, Broker):
        raise pytest.UsageError(
            f"the module '{name}' has no `broker` of Callboard; the ini option callboard_broker names one that has"
        )
    return broker


@pytest.fixture
def jobs(callboard_broker: Broker) -> Iterator[Jobs]:
    """The application's jobs, in memory, on a clock that stands: see `callboard.testing.Jobs`."""
    from callboard.testing.harness import jobs_of

    with jobs_of(callboard_broker) as jobs:
        yield jobs
