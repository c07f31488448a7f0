"""Ticks become jobs: once each, whoever serves them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callboard import cron
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import DeclarationError, StoreUnavailable
from callboard.operations.schedulers import a_scheduler_lives
from callboard.scheduler import Scheduler, run_scheduler
from callboard.store import open_store
from callboard.store.base import Store
from middleware.periodic import Periodic

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOON + 1

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver(clock: Clock) -> StubDriver:
    return StubDriver(clock=clock)


@pytest.fixture
def scheduler(clock: Clock, driver: StubDriver) -> Callable[[], Scheduler]:
    """Makes schedulers, as several processes of one application have them."""
    store = open_store("memory:")

    def make() -> Scheduler:
        broker = Broker(driver, store=store, middleware=[Periodic()], clock=clock)

        @ActorDecorator(broker)(category="night", periodic=cron("*/10 * * * *"))
        def sweep(rooms: int = 3) -> None: ...

        @ActorDecorator(broker)(category="night", periodic=cron("0 * * * *"))
        def ring() -> None: ...

        return Scheduler(broker)

    return make


def _ids(driver: StubDriver) -> list[str]:
    return sorted(stored.job_id for stored in driver._queue("night.medium").ready)


def test_each_tick_makes_one_job_whose_id_is_the_ticks(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    one = scheduler()
    assert one.serve() == []
    clock.now = NOON + 600

    assert one.serve() == [f"sweep:{NOON + 600:.0f}"]
    assert one.serve() == []
    clock.now = NOON + 3600.5
    assert one.serve() == [f"sweep:{NOON + n * 600:.0f}" for n in range(2, 7)] + [f"ring:{NOON + 3600:.0f}"]
    assert len(_ids(driver)) == 7


def test_several_schedulers_make_no_more(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    schedulers = [scheduler() for _ in range(3)]
    for minute in range(1, 121):
        clock.now = NOON + 60 * minute
        for one in schedulers[minute % 3 :] + schedulers[: minute % 3]:
            one.serve()

    ids = _ids(driver)
    assert len(ids) == len(set(ids)) == 12 + 2


def test_the_job_carries_its_tick_and_its_defaults(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    one = scheduler()
    clock.now = NOON + 600
    one.serve()

    (message,) = driver.peek("night.medium")
    assert b'"tick":' in message.body
    assert f"{NOON + 600:.0f}".encode() in message.body


def test_a_scheduler_that_dies_over_a_tick_leaves_it_to_the_others(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = scheduler()
    store = other._broker.store
    assert store is not None
    now = [0.0]
    monkeypatch.setattr(store, "_clock", lambda: now[0])
    clock.now = NOON + 600
    store.claim_key("schedule:sweep", "elsewhere:7:dead", ttl=15)

    assert other.serve() == []  # it is in the other's hands
    now[0] += 16  # which never come back
    clock.now += 16
    assert other.serve() == [f"sweep:{NOON + 600:.0f}"]


def test_a_tick_waits_for_a_store_that_is_away(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scheduler()
    clock.now = NOON + 600

    def away(*_: Any, **__: Any) -> str:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "claim_key", away, raising=False)
        patch.setattr(one._broker.store, "claim_key", away)
        assert one.serve() == []
    clock.now += 10
    assert one.serve() == [f"sweep:{NOON + 600:.0f}"]


def test_a_tick_waits_for_a_broker_that_is_away(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    one = scheduler()
    clock.now = NOON + 600
    driver.fail_puts = "away"
    assert one.serve() == []
    driver.fail_puts = None
    clock.now += 10

    assert one.serve() == [f"sweep:{NOON + 600:.0f}"]


def test_it_stops_when_it_is_told(clock: Clock, driver: StubDriver) -> None:
    broker = Broker(driver, store=open_store("memory:"), clock=clock)
    stop = threading.Event()
    thread = threading.Thread(target=run_scheduler, args=(broker, stop))
    thread.start()
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_one_that_lives_says_so(clock: Clock, driver: StubDriver) -> None:
    store = open_store("memory:")
    said, say = threading.Event(), store.claim_key

    def claim_key(key: str, owner: str, *, ttl: float, durable: bool = True) -> str:
        owner = say(key, owner, ttl=ttl, durable=durable)
        said.set()
        return owner

    store.claim_key = claim_key  # type: ignore[method-assign]
    stop = threading.Event()
    thread = threading.Thread(target=run_scheduler, args=(Broker(driver, store=store, clock=clock), stop))
    assert not a_scheduler_lives(store)
    thread.start()
    try:
        assert said.wait(30)
        assert a_scheduler_lives(store)
    finally:
        stop.set()
        thread.join(timeout=30)
    assert not a_scheduler_lives(store)


def test_ticks_before_the_start_are_not_made_up_for(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    clock.now = NOON + timedelta(days=3).total_seconds() + 1

    assert scheduler().serve() == []


def test_an_actor_with_a_schedule_needs_defaults() -> None:
    actor = ActorDecorator(Broker(StubDriver(), middleware=[Periodic()]))
    with pytest.raises(
        DeclarationError, match="'sweep' has a schedule, and so needs defaults: 'rooms' is missing"
    ):

        @actor(category="night", periodic=cron("0 3 * * *"))
        def sweep(rooms: int) -> None: ...
