"""What is told of how jobs end."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from callboard import Snooze
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.testing import Jobs, jobs_of
from middleware import stack


@pytest.fixture
def broker() -> Broker:
    store = open_store("memory:")
    return Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))


@pytest.fixture
def jobs(broker: Broker) -> Iterator[Jobs]:
    with jobs_of(broker) as lent:
        yield lent


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "callboard.jobs"]


def test_a_success_is_told_at_debug_with_its_time(
    broker: Broker, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @ActorDecorator(broker)
    def greet() -> None: ...

    with caplog.at_level(logging.DEBUG, "callboard.jobs"):
        sent = greet.send()
        jobs.drain(fail=False)
    (record,) = told(caplog)
    assert record.levelno == logging.DEBUG
    assert re.match(r"greet succeeded, (\d+ ms|under 1 ms|\d+\.\d s) ", record.getMessage())
    assert f"job_id='{sent.message_id}'" in record.getMessage()


def test_at_info_only_what_does_not_succeed_is_told(
    broker: Broker, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @ActorDecorator(broker)
    def greet() -> None: ...

    @ActorDecorator(broker)(retries=0)
    def mumble() -> None:
        raise ValueError("inaudible")

    with caplog.at_level(logging.INFO, "callboard.jobs"):
        greet.send()
        mumble.send()
        jobs.drain(fail=False)
    (record,) = told(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("job dead ")


def test_a_wait_for_a_limit_is_told_at_debug_and_a_snooze_of_the_job_at_info(
    broker: Broker, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @ActorDecorator(broker)(rate="1/minute")
    def call() -> None: ...

    @ActorDecorator(broker)()
    def look() -> None:
        raise Snooze(timedelta(hours=1), "not ready")

    with caplog.at_level(logging.DEBUG, "callboard.jobs"):
        call.send()
        call.send()
        look.send()
        jobs.drain(until=timedelta(minutes=2))
    snoozes = [(r.levelno, r.getMessage()) for r in told(caplog) if r.getMessage().startswith("job snoozed")]
    levels = {("rate limit" in text): level for level, text in snoozes}
    assert levels == {True: logging.DEBUG, False: logging.INFO}
