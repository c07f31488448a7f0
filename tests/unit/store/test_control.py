from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from callboard.errors import StoreUnavailable
from callboard.store.base import Control, ControlBell
from callboard.store.control import ControlWatch
from callboard.store.sqlite import SQLiteStore

PATIENCE = 30.0


class AwayStore(SQLiteStore):
    def __init__(self) -> None:
        super().__init__(":memory:")
        self.away = False
        self.asked = threading.Semaphore(0)

    def control(self, *, known_version: int = -1) -> Control | None:
        self.asked.release()
        if self.away:
            raise StoreUnavailable("away")
        return super().control(known_version=known_version)


@pytest.fixture
def store() -> Iterator[AwayStore]:
    store = AwayStore()
    yield store
    store.close()


def test_a_watch_knows_what_is_asked_as_soon_as_it_has_started(store: AwayStore) -> None:
    store.pause("email.3")
    store.cancel("a", at=1e12)
    watch = ControlWatch(store)
    assert (watch.paused, watch.cancelled, watch.is_current) == (frozenset(), {}, False)
    watch.start()
    try:
        assert (watch.paused, watch.cancelled, watch.is_current) == (
            frozenset({"email.3"}),
            {"a": 1e12},
            True,
        )
    finally:
        watch.stop()


def test_a_watch_tells_of_every_change(store: AwayStore) -> None:
    seen: list[frozenset[str]] = []
    told = threading.Event()

    def tell(control: Control) -> None:
        seen.append(control.paused)
        told.set()

    watch = ControlWatch(store, interval=0.01, on_change=tell)
    watch.start()
    try:
        assert seen == [frozenset()]
        told.clear()
        store.pause("email.3")
        assert told.wait(PATIENCE)
        assert watch.paused == {"email.3"}
        for _ in range(5):
            assert store.asked.acquire(timeout=PATIENCE)
        assert seen == [frozenset(), {"email.3"}], "told of what hasn't changed"
    finally:
        watch.stop()


def test_what_was_last_known_holds_while_the_store_is_away(store: AwayStore) -> None:
    store.pause("email.3")
    watch = ControlWatch(store)
    watch.refresh()
    store.away = True
    watch.refresh()
    assert (watch.paused, watch.is_current) == (frozenset({"email.3"}), False)
    store.away = False
    store.resume("email.3")
    watch.refresh()
    assert (watch.paused, watch.is_current) == (frozenset(), True)


def test_a_watch_says_for_how_long_the_store_has_not_been_away(store: AwayStore) -> None:
    watch = ControlWatch(store)
    watch.refresh()
    assert watch.steady_for == float("inf")
    store.away = True
    watch.refresh()
    assert watch.steady_for == 0.0
    store.away = False
    assert watch.steady_for == 0.0
    watch.refresh()
    assert 0.0 <= watch.steady_for < PATIENCE
    before = watch.steady_for
    watch.refresh()
    assert watch.steady_for > before


def test_a_watch_outlives_a_listener_that_fails(store: AwayStore) -> None:
    told = threading.Event()

    def fail(control: Control) -> None:
        told.set()
        raise ValueError("not today")

    watch = ControlWatch(store, interval=0.01, on_change=fail)
    watch.start()
    try:
        told.clear()
        store.pause("email.3")
        assert told.wait(PATIENCE)
        told.clear()
        store.resume("email.3")
        assert told.wait(PATIENCE)
    finally:
        watch.stop()


def test_a_watch_can_be_stopped_and_started_again(store: AwayStore) -> None:
    before = threading.active_count()
    watch = ControlWatch(store, interval=0.01)
    watch.stop()
    watch.start()
    watch.start()
    assert threading.active_count() == before + 1
    watch.stop()
    watch.stop()
    assert threading.active_count() == before
    store.pause("email.3")
    watch.start()
    assert watch.paused == {"email.3"}
    watch.stop()
    assert threading.active_count() == before


class Bell(ControlBell):
    def __init__(self) -> None:
        self._rung = threading.Event()

    def wait(self, timeout: float) -> None:
        self._rung.wait(timeout)
        self._rung.clear()

    def ring(self) -> None:
        self._rung.set()

    def close(self) -> None:
        pass


def test_what_rang_while_the_store_was_away_is_seen_soon_after(
    store: AwayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell, told = Bell(), threading.Event()
    monkeypatch.setattr(store, "control_bell", lambda: bell)
    watch = ControlWatch(store, interval=3600, on_change=lambda control: told.set())
    watch.start()
    try:
        told.clear()
        assert store.asked.acquire(timeout=PATIENCE)
        store.away = True
        store.pause("email.3")
        bell.ring()
        assert store.asked.acquire(timeout=PATIENCE)
        store.away = False
        assert told.wait(PATIENCE)
        assert watch.paused == {"email.3"}
    finally:
        watch.stop()
