"""Ticks become jobs: once each, whoever serves them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callboard import cron
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.cron import Cron
from callboard.errors import DeclarationError, InvalidPayload, StoreUnavailable
from callboard.operations.schedulers import a_scheduler_lives
from callboard.scheduler import Scheduler, run_scheduler
from callboard.store import open_store
from callboard.store.base import Fate, Store
from callboard.store.sqlite import SQLiteStore
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
    sent = []
    for minute in range(11, 61):
        clock.now = NOON + 60 * minute + 0.5
        sent += one.serve()
    assert sent == [f"sweep:{NOON + n * 600:.0f}" for n in range(2, 7)] + [f"ring:{NOON + 3600:.0f}"]
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


def test_a_schedule_that_is_new_starts_from_now(
    scheduler: Callable[[], Scheduler], clock: Clock, driver: StubDriver
) -> None:
    clock.now = NOON + timedelta(days=3).total_seconds() + 1
    assert scheduler().serve() == []


# -- what nobody served in time --------------------------------------------------------------------------


@dataclass
class Shop:
    """An application with one schedule, whose schedulers come and go."""

    clock: Clock
    driver: StubDriver
    store: Store

    def scheduler(self, schedule: Cron) -> Scheduler:
        broker = Broker(self.driver, store=self.store, middleware=[Periodic()], clock=self.clock)

        @ActorDecorator(broker)(category="night", periodic=schedule)
        def sweep() -> None: ...

        return Scheduler(broker)

    def told(self) -> list[tuple[float, str, int]]:
        """Of what has become known of ticks, oldest first: minutes after noon, fate, how many in a row."""
        return [
            ((tick.due - NOON) / 60, tick.fate.value, tick.count)
            for tick in reversed(self.store.ticks("sweep"))
        ]

    def sent(self) -> list[float]:
        """For which ticks jobs were queued, in minutes after noon."""
        return [(float(job_id.split(":")[1]) - NOON) / 60 for job_id in _ids(self.driver)]


@pytest.fixture
def shop(clock: Clock, driver: StubDriver) -> Shop:
    return Shop(clock, driver, SQLiteStore(":memory:", clock=clock))


@pytest.mark.parametrize(
    ("schedule", "sent", "told"),
    [
        (cron("*/10 * * * *"), [60], [(50, "missed", 5), (60, "caught up", 1)]),
        (cron("*/10 * * * *", misfire_age=timedelta(minutes=4)), [], [(60, "missed", 6)]),
        (
            cron("*/10 * * * *", misfire="run all"),
            [10, 20, 30, 40, 50, 60],
            [(minute, "caught up", 1) for minute in range(10, 70, 10)],
        ),
        (
            cron("*/10 * * * *", misfire="run all", misfire_limit=2),
            [50, 60],
            [(40, "missed", 4), (50, "caught up", 1), (60, "caught up", 1)],
        ),
        (
            cron("*/10 * * * *", misfire="run all", misfire_age=timedelta(minutes=30)),
            [40, 50, 60],
            [(30, "missed", 3), (40, "caught up", 1), (50, "caught up", 1), (60, "caught up", 1)],
        ),
        (cron("*/10 * * * *", misfire="skip"), [], [(60, "missed", 6)]),
    ],
    ids=["run once", "run once, too old", "run all", "run all, too many", "run all, too old", "skip"],
)
def test_after_an_outage_the_policy_decides_and_all_is_told(
    shop: Shop, schedule: Cron, sent: list[float], told: list[tuple[float, str, int]]
) -> None:
    shop.scheduler(schedule).serve()  # it lives for a moment
    shop.clock.now = NOON + 65 * 60
    for _ in range(2):
        shop.scheduler(schedule).serve()

    assert shop.sent() == sent
    assert shop.told() == told
    missed = [tick for tick in shop.store.ticks("sweep") if tick.fate is Fate.MISSED]
    assert all(tick.reason.startswith("not served") for tick in missed)
    assert all(tick.first == NOON + 600 for tick in missed)

    shop.clock.now = NOON + 70 * 60 + 59
    shop.scheduler(schedule).serve()
    assert shop.told() == [*told, (70, "on time", 1)]


def test_a_tick_that_is_due_just_now_stands_for_those_that_were_missed(shop: Shop) -> None:
    schedule = cron("*/10 * * * *")
    shop.scheduler(schedule).serve()
    shop.clock.now = NOON + 60 * 60 + 30
    shop.scheduler(schedule).serve()
    assert shop.told() == [(50, "missed", 5), (60, "on time", 1)]


@pytest.mark.parametrize(
    ("policy", "sent", "fate"), [("run once", [10], "caught up"), ("skip", [], "missed")]
)
def test_what_was_away_for_too_long_is_told_with_the_tick(
    shop: Shop, policy: Any, sent: list[float], fate: str
) -> None:
    one = shop.scheduler(cron("*/10 * * * *", misfire=policy))
    one.serve()
    shop.driver.fail_puts = "away"
    for second in range(0, 120, 5):
        shop.clock.now = NOON + 600 + second
        assert one.serve() == []
    shop.driver.fail_puts = None
    shop.clock.now += 5
    one.serve()

    assert shop.sent() == sent
    assert shop.told() == [(10, fate, 1)]
    if policy == "skip":
        assert "away" in shop.store.ticks("sweep")[0].reason


def test_ticks_of_a_pause_are_told_and_not_made_up_for(shop: Shop) -> None:
    schedule = cron("*/10 * * * *", misfire="run all")
    one = shop.scheduler(schedule)
    one.serve()
    shop.store.pause_schedule("sweep", at=NOON + 60, by="ada")
    shop.clock.now = NOON + 600
    one.serve()
    shop.clock.now = NOON + 3600  # it was away for a while
    shop.scheduler(schedule).serve()
    shop.store.pause_schedule("sweep", at=None)
    shop.clock.now = NOON + 4200
    one.serve()

    assert shop.told() == [(10, "paused", 1), (60, "paused", 5), (70, "on time", 1)]
    assert shop.sent() == [70]


def test_what_periodiq_sent_is_not_caught_up(shop: Shop) -> None:
    schedule = cron("*/10 * * * *", misfire="run all")
    one = shop.scheduler(schedule)
    one.serve()
    shop.clock.now = NOON + 1200
    actor = one._broker.actors["sweep"]
    actor.send_with_options(scheduled_at="2026-03-01 12:20:00+00:00")  # and at 12:10 it didn't live
    shop.clock.now = NOON + 1900
    shop.scheduler(schedule).serve()
    assert shop.told() == [(10, "caught up", 1), (20, "on time", 1), (30, "caught up", 1)]
    assert shop.sent() == [10, 20, 30]


def test_a_schedule_that_was_changed_counts_from_a_minute_ago(shop: Shop) -> None:
    shop.scheduler(cron("0 3 * * *")).serve()
    shop.clock.now = NOON + 3600
    shop.scheduler(cron("* * * * *", misfire="run all")).serve()
    assert shop.sent() == [60]


def test_a_clock_that_ran_ahead_stops_no_schedule(shop: Shop) -> None:
    schedule = cron("*/10 * * * *")
    shop.scheduler(schedule).serve()
    shop.clock.now = NOON + timedelta(days=3).total_seconds()
    shop.scheduler(schedule).serve()
    shop.clock.now = NOON + 300
    one = shop.scheduler(schedule)
    one.serve()
    shop.clock.now = NOON + 600
    assert one.serve() == [f"sweep:{NOON + 600:.0f}"]


def test_an_outage_of_months_is_told_without_counting_each_minute(shop: Shop) -> None:
    schedule = cron("* * * * *")
    shop.scheduler(schedule).serve()
    shop.clock.now = NOON + timedelta(days=50).total_seconds() + 90
    shop.scheduler(schedule).serve()

    old, missed, sent = shop.told()
    days = 24 * 60
    assert old[:2] == (43 * days + 1, "missed")
    assert 20_000 <= old[2] < 43 * days
    assert missed == (50 * days, "missed", 7 * days - 1)
    assert sent == (50 * days + 1, "on time", 1)


def test_a_job_that_cannot_be_sent_is_told_and_holds_nothing_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shop.scheduler(cron("*/10 * * * *"))
    one.serve()

    def refuse(*_: Any, **__: Any) -> None:
        raise InvalidPayload("it doesn't fit", job_id="x")

    with monkeypatch.context() as broken:
        broken.setattr(one._broker, "enqueue", refuse)
        shop.clock.now = NOON + 600
        assert one.serve() == []
    assert shop.told() == [(10, "failed", 1)]
    shop.clock.now = NOON + 1200
    assert one.serve()


def test_an_actor_with_a_schedule_needs_defaults() -> None:
    actor = ActorDecorator(Broker(StubDriver(), middleware=[Periodic()]))
    with pytest.raises(
        DeclarationError, match="'sweep' has a schedule, and so needs defaults: 'rooms' is missing"
    ):

        @actor(category="night", periodic=cron("0 3 * * *"))
        def sweep(rooms: int) -> None: ...
