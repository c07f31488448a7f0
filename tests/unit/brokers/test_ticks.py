"""A tick is one job, whoever sends it: what periodiq calls, and what becomes of a tick that was sent twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dramatiq import Middleware
from prometheus_client import CollectorRegistry

from callboard import RetryPolicy, cron, current_job
from callboard.actor import ActorDecorator, JobActor
from callboard.brokers import ticks
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import NotQueued, StoreUnavailable
from callboard.metrics import Metrics
from callboard.states import State
from callboard.store.base import Fate, Store
from callboard.store.sqlite import SQLiteStore
from callboard.testing import Jobs, jobs_of
from middleware import stack
from middleware.periodic import Periodic

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
AT_NOON = "2026-03-01 12:00:00+00:00"  # as periodiq writes it


class Clock:
    """A clock that stands until it is moved."""

    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver(clock: Clock) -> StubDriver:
    return StubDriver(clock=clock)


Make = Callable[[], JobActor[..., Any]]


@pytest.fixture
def sweep(clock: Clock, driver: StubDriver) -> Make:
    """Makes the same actor for one more process."""
    store = SQLiteStore(":memory:", clock=clock)

    def make() -> JobActor[..., Any]:
        broker = Broker(driver, store=store, middleware=[Periodic()], clock=clock)

        @ActorDecorator(broker)(category="night", periodic=cron("*/10 * * * *"))
        def sweep(rooms: int = 3) -> None: ...

        return sweep

    return make


def _ids(driver: StubDriver) -> list[str]:
    return sorted(stored.job_id for stored in driver._queue("night.medium").ready)


def test_periodiqs_way_makes_one_job_a_tick_however_often_and_late_it_comes(
    sweep: Make, driver: StubDriver
) -> None:
    one, other = sweep(), sweep()
    sent = one.send_with_options(scheduled_at=AT_NOON)
    again = [
        actor.send_with_options(scheduled_at=moment)
        for actor in (one, other)
        for moment in (AT_NOON, "2026-03-01 12:00:31.5+00:00", "2026-03-01T13:09:59+01:00")
    ]

    assert {message.message_id for message in (sent, *again)} == {f"sweep:{NOON:.0f}"}
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]
    assert sent.options["callboard"]["tick"] == NOON
    other.send_with_options(scheduled_at="2026-03-01 12:10:00+00:00")
    assert _ids(driver) == [f"sweep:{NOON:.0f}", f"sweep:{NOON + 600:.0f}"]


def test_a_moment_without_a_zone_is_refused(sweep: Make) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        sweep().send_with_options(scheduled_at="2026-03-01 12:00:00")


def test_a_send_with_arguments_is_an_ordinary_one(sweep: Make, driver: StubDriver) -> None:
    message = sweep().send_with_options(kwargs={"rooms": 4}, scheduled_at=AT_NOON)
    assert not message.message_id.startswith("sweep:")
    assert _ids(driver) == [message.message_id]


def test_a_tick_that_another_claimed_and_did_not_send_is_sent_when_the_hold_is_over(
    sweep: Make, driver: StubDriver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = sweep()
    store = actor.broker.store
    assert store is not None
    store.claim_key("schedule:sweep", "elsewhere:7:f00", ttl=15)

    def pass_time(_: float) -> None:
        clock.now += 1

    monkeypatch.setattr(ticks, "sleep", pass_time)
    actor.send_with_options(scheduled_at=AT_NOON)
    assert NOON + 15 <= clock.now < NOON + 17
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]


@pytest.mark.parametrize("own_number", [False, True], ids=["an ended process", "the container before"])
def test_a_holder_that_is_known_to_be_gone_is_not_waited_for(
    sweep: Make, driver: StubDriver, own_number: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = sweep()
    if own_number:
        pid = os.getpid()
    else:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        pid = gone.pid
    store = actor.broker.store
    assert store is not None
    store.claim_key("schedule:sweep", f"{socket.gethostname()}:{pid}:f00.1", ttl=15)

    def never(_: float) -> None:
        raise AssertionError("it waited")

    monkeypatch.setattr(ticks, "sleep", never)
    actor.send_with_options(scheduled_at=AT_NOON)
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]


@pytest.mark.parametrize("broken", ["the store", "the broker"])
def test_what_is_away_for_a_moment_neither_loses_nor_doubles_a_tick(
    sweep: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    actor = sweep()

    def away(*_: Any, **__: Any) -> str:
        raise StoreUnavailable("the disk is full")

    waits = 0
    with monkeypatch.context() as outage:
        if broken == "the store":
            outage.setattr(actor.broker.store, "claim_key", away)
        else:
            driver.fail_puts = "away"

        def wait(_: float) -> None:
            nonlocal waits
            waits += 1
            if waits == 3:
                outage.undo()
                driver.fail_puts = None

        outage.setattr(ticks, "sleep", wait)
        actor.send_with_options(scheduled_at=AT_NOON)
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]
    assert actor.send_with_options(scheduled_at=AT_NOON)
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]


def test_what_stays_away_is_told(sweep: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def pass_time(_: float) -> None:
        now[0] += 10

    monkeypatch.setattr(ticks, "sleep", pass_time)
    monkeypatch.setattr(ticks, "monotonic", lambda: now[0])
    driver.fail_puts = "away"
    actor = sweep()
    with pytest.raises(NotQueued):
        actor.send_with_options(scheduled_at=AT_NOON)
    assert now[0] >= 30


def test_without_a_store_the_id_is_the_ticks_all_the_same(driver: StubDriver, clock: Clock) -> None:
    broker = Broker(driver, middleware=[Periodic()], clock=clock)

    @ActorDecorator(broker)(category="night", periodic=cron("*/10 * * * *"))
    def sweep() -> None: ...

    sweep.send_with_options(scheduled_at=AT_NOON)
    assert _ids(driver) == [f"sweep:{NOON:.0f}"]


def _stack(store: Store) -> list[Middleware]:
    return stack(store, metrics=Metrics(CollectorRegistry()))


def test_a_tick_that_was_sent_twice_runs_once() -> None:
    runs = []
    store = SQLiteStore(":memory:")
    broker = Broker(StubDriver(), store=store, middleware=_stack(store))

    @ActorDecorator(broker)(
        category="night", periodic=cron("*/10 * * * *"), retries=RetryPolicy(jitter=False)
    )
    def sweep() -> None:
        runs.append(current_job().attempt)
        if len(runs) == 1:
            raise OSError("once more")

    with closing(broker), jobs_of(broker) as jobs:
        tick = cron("*/10 * * * *").floor(jobs.clock.now)
        for _ in range(3):  # each sender dies before it can mark the tick
            broker.enqueue(ticks.tick_message(sweep, tick))
            jobs.clock.advance(timedelta(milliseconds=5))
        jobs.drain()
        jobs.clock.advance(timedelta(hours=1))
        jobs.drain()

        assert runs == [1, 2]
        assert jobs.state(ticks.tick_id(sweep, tick)) is State.SUCCEEDED
        assert not jobs.waiting


@pytest.fixture
def patrol() -> Iterator[tuple[JobActor[..., Any], Jobs, list[int]]]:
    """An actor that is due every ten minutes, unless its last job hasn't ended; it fails while its list is empty."""
    runs = [0]
    store = SQLiteStore(":memory:")
    broker = Broker(StubDriver(), store=store, middleware=_stack(store))
    schedule = cron("*/10 * * * *", overlap="skip")

    @ActorDecorator(broker)(
        category="night", periodic=schedule, retries=RetryPolicy(base=timedelta(hours=1), jitter=False)
    )
    def patrol() -> None:
        if not runs:
            raise OSError("once more")

    with closing(broker), jobs_of(broker) as jobs:
        yield patrol, jobs, runs


def _fates(jobs: Jobs) -> list[str]:
    assert jobs.broker.store is not None
    return [tick.fate.value for tick in reversed(jobs.broker.store.ticks("patrol"))]


def test_a_tick_is_skipped_while_the_job_of_the_one_before_waits(patrol: Any) -> None:
    actor, jobs, _ = patrol
    first = jobs.tick(actor)
    jobs.tick(actor)
    jobs.tick(actor)
    assert [job.id for job in jobs.waiting] == [first.message_id]
    assert _fates(jobs) == ["on time", "overlap", "overlap"]
    assert jobs.broker.store.ticks("patrol")[0].reason == f"{first.message_id} hadn't ended"

    jobs.drain()
    jobs.tick(actor)
    assert len(jobs.waiting) == 1
    assert _fates(jobs)[3:] == ["on time"]


def test_a_tick_is_skipped_while_the_job_of_the_one_before_waits_for_its_next_attempt(patrol: Any) -> None:
    actor, jobs, runs = patrol
    runs.clear()
    jobs.tick(actor)
    jobs.drain(advance=False, fail=False)
    jobs.tick(actor)
    runs.append(0)
    jobs.drain()  # an hour goes by
    jobs.tick(actor)
    assert _fates(jobs) == ["on time", "overlap", "on time"]


def test_a_tick_is_skipped_while_a_job_that_was_run_now_has_not_ended(patrol: Any) -> None:
    actor, jobs, _ = patrol
    jobs.broker.ticks().run_now(actor, by="ada")
    jobs.tick(actor)
    assert _fates(jobs) == ["run now", "overlap"]
    assert len(jobs.waiting) == 1


def test_a_job_whose_record_is_forgotten_has_ended(patrol: Any) -> None:
    actor, jobs, _ = patrol
    jobs.tick(actor)
    jobs.drain()
    assert jobs.broker.store.remove_ended(before=jobs.clock() + 1) == 1
    jobs.tick(actor)
    assert _fates(jobs) == ["on time", "on time"]


def test_periodiqs_way_minds_a_pause(sweep: Make, driver: StubDriver) -> None:
    actor = sweep()
    store = actor.broker.store
    assert store is not None
    store.pause_schedule("sweep", at=NOON, by="ada")
    actor.send_with_options(scheduled_at=AT_NOON)
    store.pause_schedule("sweep", at=None)
    actor.send_with_options(scheduled_at=AT_NOON)

    assert _ids(driver) == []
    assert [(tick.fate, tick.reason) for tick in store.ticks("sweep")] == [(Fate.PAUSED, "paused by ada")]


def test_a_worker_that_is_late_for_a_tick_runs_it(patrol: Any) -> None:
    actor, jobs, _ = patrol
    tick = jobs.tick(actor)
    jobs.clock.advance(timedelta(days=2))
    jobs.drain()
    assert jobs.state(tick.message_id) is State.SUCCEEDED
