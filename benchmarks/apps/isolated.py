"""One job that does nothing, isolated. Its processes import this module."""

from __future__ import annotations

from callboard import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from middleware.current_job import CurrentJob
from middleware.isolated_runs import IsolatedRuns

broker = Broker(StubDriver(), middleware=[CurrentJob(), IsolatedRuns()])
actor = ActorDecorator(broker)


@actor(isolated=True)
def nothing() -> None: ...
