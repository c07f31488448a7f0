"""What Prometheus reads of jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from callboard import Permanent, Priority, RetryPolicy
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware import stack

PATIENCE = 30.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def broker(registry: CollectorRegistry) -> Iterator[Broker]:
    store = open_store("memory:")
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(registry)))
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: Broker) -> ActorDecorator:
    return ActorDecorator(broker)


@pytest.fixture
def read(registry: CollectorRegistry) -> Callable[..., float | None]:
    """The value of a metric of an actor of the category 'jobs'."""

    def value(name: str, actor: str, priority: str = "medium", **labels: str) -> float | None:
        return registry.get_sample_value(
            f"callboard_{name}", {"category": "jobs", "actor": actor, "priority": priority, **labels}
        )

    return value


def _run_all(broker: Broker) -> None:
    """Run what is queued, and what that queues, to the end."""
    worker = Worker(broker, sorted(broker.queues), threads=2)
    worker.start()
    for queue in broker.queues:
        broker.join(queue, timeout=30_000)
    worker.stop()


def test_a_success_is_counted_and_timed(
    broker: Broker, actor: ActorDecorator, read: Callable[..., float | None]
) -> None:
    @actor(category="jobs")
    def work() -> None: ...

    for _ in range(3):
        work.send()
    assert read("jobs_enqueued_total", "work") == 3
    assert read("jobs_started_total", "work") == 0
    _run_all(broker)
    counts = {name: read(f"jobs_{name}_total", "work") for name in ("enqueued", "started", "succeeded")}
    assert counts == {"enqueued": 3, "started": 3, "succeeded": 3}
    assert {read(f"jobs_{name}_total", "work") for name in ("failed", "retried", "dead")} == {0}
    for histogram in ("job_run_seconds", "job_queue_seconds"):
        assert read(f"{histogram}_count", "work") == 3
        assert read(f"{histogram}_bucket", "work", le="+Inf") == 3
        assert 0 < (read(f"{histogram}_sum", "work") or 0) < 3 * PATIENCE


def test_jobs_that_are_sent_together_are_all_counted(
    actor: ActorDecorator, read: Callable[..., float | None]
) -> None:
    @actor(category="jobs")
    def work() -> None: ...

    work.send_many([{}, {}, {}])
    work.using(priority=Priority.HIGH).send_many([{}, {}])
    assert read("jobs_enqueued_total", "work") == 3
    assert read("jobs_enqueued_total", "work", "high") == 2


def test_failures_are_counted_by_what_becomes_of_them(
    broker: Broker, actor: ActorDecorator, read: Callable[..., float | None]
) -> None:
    from datetime import timedelta

    soon = RetryPolicy(attempts=3, base=timedelta(milliseconds=1), cap=timedelta(milliseconds=1))

    @actor(category="jobs", retries=soon)
    def bad() -> None:
        raise ValueError("no")

    @actor(category="jobs")
    def hopeless() -> None:
        raise Permanent("no")

    bad.send()
    hopeless.send()
    _run_all(broker)
    names = ("started", "succeeded", "failed", "retried", "dead")
    assert [read(f"jobs_{name}_total", "bad") for name in names] == [3, 0, 3, 2, 1]
    assert [read(f"jobs_{name}_total", "hopeless") for name in names] == [1, 0, 1, 0, 1]
    assert read("job_run_seconds_count", "bad") == 3


def test_what_never_started_is_neither_started_nor_timed(
    broker: Broker, actor: ActorDecorator, read: Callable[..., float | None]
) -> None:
    @actor(category="jobs")
    def work() -> None: ...

    message = work.send()
    assert broker.store is not None
    broker.store.cancel(message.message_id, at=time.time())
    _run_all(broker)
    assert read("jobs_started_total", "work") == 0
    assert read("job_run_seconds_count", "work") == 0
    assert read("jobs_succeeded_total", "work") == 0
    assert read("jobs_in_progress", "work") == 0


def test_what_runs_now_is_known(
    broker: Broker, actor: ActorDecorator, read: Callable[..., float | None]
) -> None:
    started, release = threading.Semaphore(0), threading.Event()

    @actor(category="jobs")
    def hold() -> None:
        started.release()
        release.wait(PATIENCE)

    hold.send()
    hold.send()
    worker = Worker(broker, sorted(broker.queues), threads=3)
    worker.start()
    assert started.acquire(timeout=PATIENCE)
    assert started.acquire(timeout=PATIENCE)
    assert read("jobs_in_progress", "hold") == 2
    release.set()
    worker.stop()
    assert read("jobs_in_progress", "hold") == 0


def test_run_times_fall_into_buckets_that_add_up(registry: CollectorRegistry) -> None:
    job = Metrics(registry).of("jobs", "work", "low")
    for seconds in (0.0005, 0.001, 0.002, 9000.0):
        job.ended(seconds, "succeeded")
    text = generate_latest(registry).decode()
    labels = 'actor="work",category="jobs",le="{}",priority="low"'
    for bound, count in (("0.001", 2), ("0.005", 3), ("7200.0", 3), ("+Inf", 4)):
        assert f"callboard_job_run_seconds_bucket{{{labels.format(bound)}}} {count}.0" in text
    assert "# TYPE callboard_job_run_seconds histogram" in text


def test_many_threads_lose_no_count(registry: CollectorRegistry) -> None:
    job = Metrics(registry).of("jobs", "work", "low")

    def count() -> None:
        for _ in range(2000):
            job.started(0.1)
            job.ended(0.1, "succeeded")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = {"category": "jobs", "actor": "work", "priority": "low"}
    for name in (
        "jobs_started_total",
        "jobs_succeeded_total",
        "job_run_seconds_count",
        "job_queue_seconds_count",
    ):
        assert registry.get_sample_value(f"callboard_{name}", labels) == 8000
