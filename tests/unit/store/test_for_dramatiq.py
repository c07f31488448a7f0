"""What Dramatiq's own middleware keeps in a store: results, barriers, rate limits.

Most of Dramatiq has no annotations, hence the line for mypy.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import GroupCallbacks, Retries
from dramatiq.rate_limits import Barrier, ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.results import ResultFailure, ResultMissing, Results, ResultTimeout

from callboard.store.base import Store
from callboard.store.rate_limits import StoreRateLimiterBackend
from callboard.store.results import StoreResultBackend
from callboard.store.sqlite import SQLiteStore

PATIENCE_MS = 30_000


@pytest.fixture
def store() -> Iterator[Store]:
    store = SQLiteStore(":memory:")
    yield store
    store.close()


@pytest.fixture
def broker(store: Store) -> Iterator[StubBroker]:
    broker = StubBroker(middleware=[Retries(max_retries=0)])  # it is what says that a message has failed
    broker.add_middleware(Results(backend=StoreResultBackend(store)))
    broker.add_middleware(GroupCallbacks(StoreRateLimiterBackend(store)))
    broker.emit_after("process_boot")
    worker = Worker(broker, worker_timeout=20, worker_threads=4)
    worker.start()
    yield broker
    worker.stop()
    broker.close()


def test_a_result_comes_back_as_it_was_returned(broker: StubBroker, store: Store) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def double(value: int) -> dict[str, int]:
        return {"value": 2 * value}

    assert double.send(21).get_result(backend=StoreResultBackend(store), block=True, timeout=PATIENCE_MS) == {
        "value": 42
    }


def test_a_failure_comes_back_as_one(broker: StubBroker, store: Store) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def fail() -> None:
        raise ValueError("no such invoice")

    with pytest.raises(ResultFailure, match="no such invoice"):
        fail.send().get_result(backend=StoreResultBackend(store), block=True, timeout=PATIENCE_MS)


def test_a_result_that_is_not_there_is_missed_or_waited_for_in_vain(broker: StubBroker, store: Store) -> None:
    @dramatiq.actor(broker=broker)
    def nothing() -> None:
        pass

    message = nothing.message()
    with pytest.raises(ResultMissing):
        message.get_result(backend=StoreResultBackend(store))
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        message.get_result(backend=StoreResultBackend(store), block=True, timeout=300)
    assert time.monotonic() - began >= 0.3


def test_a_group_waits_for_all_its_results(broker: StubBroker) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def square(value: int) -> int:
        return value * value

    group = dramatiq.group([square.message(n) for n in range(10)], broker=broker).run()
    assert list(group.get_results(block=True, timeout=PATIENCE_MS)) == [n * n for n in range(10)]


def test_the_callback_of_a_group_runs_once_after_all_its_jobs(broker: StubBroker) -> None:
    done: list[int] = []
    ended = threading.Semaphore(0)
    seen: list[int] = []

    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        done.append(n)

    @dramatiq.actor(broker=broker)
    def finish() -> None:
        seen.append(len(done))
        ended.release()

    group = dramatiq.group([work.message(n) for n in range(20)], broker=broker)
    group.add_completion_callback(finish.message())
    group.run()
    assert ended.acquire(timeout=PATIENCE_MS / 1000)
    broker.join("default", timeout=PATIENCE_MS)
    assert seen == [20]


def test_threads_wait_at_a_barrier_for_the_last_one(store: Store) -> None:
    backend = StoreRateLimiterBackend(store)
    assert Barrier(backend, "all", ttl=PATIENCE_MS).create(parties=3)
    passed: list[bool] = []

    def arrive() -> None:
        passed.append(Barrier(backend, "all", ttl=PATIENCE_MS).wait(timeout=PATIENCE_MS))

    threads = [threading.Thread(target=arrive) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert not StoreRateLimiterBackend(store).wait("all@events", timeout=50)
    assert passed == []
    arrive()
    for thread in threads:
        thread.join(PATIENCE_MS / 1000)
    assert passed == [True, True, True]


def test_dramatiqs_rate_limiters_count_in_a_store(store: Store) -> None:
    backend = StoreRateLimiterBackend(store)
    two = ConcurrentRateLimiter(backend, "two", limit=2, ttl=PATIENCE_MS)
    with (
        two.acquire(raise_on_failure=False) as first,
        two.acquire(raise_on_failure=False) as second,
        two.acquire(raise_on_failure=False) as third,
    ):
        assert (first, second, third) == (True, True, False)
    with two.acquire(raise_on_failure=False) as again:
        assert again

    window = WindowRateLimiter(backend, "window", limit=3, window=60)
    taken = []
    for _ in range(5):
        with window.acquire(raise_on_failure=False) as acquired:
            taken.append(acquired)
    assert taken == [True, True, True, False, False]
