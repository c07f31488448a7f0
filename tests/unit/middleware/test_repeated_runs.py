"""What is told of a run that isn't a job's first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from callboard import RetryPolicy, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.operations import Letters, Operations
from callboard.store import open_store
from callboard.testing import Clock, Jobs, jobs_of
from middleware import stack


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def broker(registry: CollectorRegistry) -> Broker:
    store = open_store("memory:")
    return Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(registry)))


@pytest.fixture
def jobs(broker: Broker) -> Iterator[Jobs]:
    with jobs_of(broker) as lent:
        yield lent


def test_progress_begins_anew_with_each_attempt(broker: Broker, jobs: Jobs) -> None:
    seen = []

    @ActorDecorator(broker)(retries=1)
    def climb() -> None:
        assert broker.recorder is not None
        assert broker.recorder.flush()
        record = jobs.record(current_job().id)
        seen.append((record.attempt, record.progress, record.progress_note))
        current_job().progress(0.9, "nearly there")
        if current_job().attempt == 1:
            raise ValueError("slipped")

    climb.send()
    jobs.drain()
    assert seen[0][1] is None
    assert seen[1] == (2, 0.0, "")


def test_the_wait_that_is_logged_doesnt_count_the_run(
    broker: Broker, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock: Clock = jobs.clock

    @ActorDecorator(broker)(retries=RetryPolicy(attempts=2, base=timedelta(seconds=10), jitter=False))
    def dawdle() -> None:
        clock.advance(timedelta(seconds=7))
        if current_job().attempt == 1:
            raise ValueError("too slow")

    dawdle.send()
    with capture_logs() as lines:
        jobs.drain()
    waits = [line["wait"] for line in lines if line["event"] == "job failed, tried again"]
    assert waits == [10.0]


def test_the_wait_of_a_replayed_job_begins_with_the_replay(
    broker: Broker, jobs: Jobs, registry: CollectorRegistry
) -> None:
    @ActorDecorator(broker)(category="night", retries=0)
    def dare() -> None:
        if not current_job().replayed:
            raise ValueError("not yet")

    message = dare.send()
    jobs.drain(fail=False)
    jobs.clock.advance(timedelta(days=3))
    Operations(broker).dead.replay(Letters(ids=[message.message_id]))
    jobs.drain()
    labels = {"category": "night", "actor": "dare", "priority": "medium"}
    assert registry.get_sample_value("callboard_job_queue_seconds_count", labels) == 2
    waited = registry.get_sample_value("callboard_job_queue_seconds_sum", labels)
    assert waited is not None
    assert waited < 60
