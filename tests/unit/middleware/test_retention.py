"""Old records go, and dead letters stay."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.states import State, order
from callboard.store import open_store
from callboard.store.base import Change, Query, Store
from middleware.retention import Retention

_NOW = 1_800_000_000.0
_DAY = 86_400.0


@pytest.fixture
def store() -> Store:
    return open_store("memory:")


@pytest.fixture
def broker(store: Store) -> Iterator[Broker]:
    broker = Broker(StubDriver(), store=store, clock=lambda: _NOW)
    yield broker
    broker.close()


def _ended(job_id: str, state: State, *, days_ago: float) -> Change:
    at = _NOW - days_ago * _DAY
    return Change(job_id=job_id, order=order(0, state), state=state, at=at, enqueued_at=at, finished_at=at)


def test_what_ended_long_ago_is_removed_and_the_dead_and_waiting_stay(broker: Broker, store: Store) -> None:
    waiting = Change(job_id="waiting", order=1, state=State.QUEUED, at=0.0, enqueued_at=0.0)
    store.write(
        [
            _ended("old", State.SUCCEEDED, days_ago=31),
            _ended("cancelled", State.CANCELLED, days_ago=40),
            _ended("recent", State.SUCCEEDED, days_ago=29),
            _ended("dead", State.DEAD, days_ago=400),
            waiting,
        ]
    )
    assert Retention(keep=timedelta(days=30)).sweep(broker) == 2
    left = {job_id for job_id in ("old", "cancelled", "recent", "dead", "waiting") if store.get(job_id)}
    assert left == {"recent", "dead", "waiting"}


def test_one_sweep_in_a_while_is_enough_for_all_workers(broker: Broker, store: Store) -> None:
    assert Retention(keep=timedelta(days=30)).sweep(broker) == 0
    store.write([_ended("old", State.SUCCEEDED, days_ago=31)])
    assert Retention(keep=timedelta(days=30)).sweep(broker) == 0
    assert store.get("old") is not None


def test_of_very_many_jobs_that_have_ended_the_newest_are_kept(broker: Broker, store: Store) -> None:
    store.write([_ended(f"ended-{n}", State.SUCCEEDED, days_ago=n) for n in range(1, 8)])
    store.write([_ended(f"cancelled-{n}", State.CANCELLED, days_ago=n + 0.5) for n in range(1, 4)])
    store.write([_ended(f"dead-{n}", State.DEAD, days_ago=n) for n in range(20, 29)])
    assert Retention(keep=timedelta(days=30), keep_most=4).sweep(broker) == 6
    left = {record.job_id for record in store.search(Query(limit=100)).records}
    kept = {"ended-1", "cancelled-1", "ended-2", "cancelled-2"}
    assert left == kept | {f"dead-{n}" for n in range(20, 29)}


def test_as_many_as_may_be_kept_are_kept(broker: Broker, store: Store) -> None:
    store.write([_ended(f"{n}", State.SUCCEEDED, days_ago=n) for n in range(3)])
    assert Retention(keep=timedelta(days=30), keep_most=3).sweep(broker) == 0
