"""What every store does for limits, whatever it keeps them in."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from callboard.store.base import Store
from tests.conformance.test_store import PATIENCE, Clock, clock, store, subject

__all__ = ["clock", "store", "subject"]  # pytest finds fixtures by the module's names


def test_slots_are_reserved_one_after_the_other(store: Store, clock: Clock) -> None:
    waits = [store.reserve("k", every=10, burst=1, came_back=False) for _ in range(4)]
    assert waits == pytest.approx([0, 10, 20, 30])
    assert store.reserve("other", every=10, burst=1, came_back=False) == 0
    clock.now += 100
    assert store.reserve("k", every=10, burst=1, came_back=False) == 0


def test_after_a_lull_so_many_start_at_once(store: Store, clock: Clock) -> None:
    waits = [store.reserve("k", every=10, burst=3, came_back=False) for _ in range(5)]
    assert waits == pytest.approx([0, 0, 0, 10, 20])


def test_who_comes_back_on_time_starts(store: Store, clock: Clock) -> None:
    waits = [store.reserve("k", every=10, burst=1, came_back=False) for _ in range(20)]
    began = clock.now
    for wait in waits[1:]:
        clock.now = began + wait
        assert store.reserve("k", every=10, burst=1, came_back=True) == 0


def test_those_who_come_late_do_not_all_start_at_once(store: Store, clock: Clock) -> None:
    """Nobody worked for an hour, and all slots have gone by."""
    for _ in range(50):
        store.reserve("k", every=10, burst=1, came_back=False)
    clock.now += 3600
    due = [clock.now] * 50
    starts: list[float] = []
    looks = 0
    while due:
        clock.now = max(clock.now, due.pop(0))
        looks += 1
        wait = store.reserve("k", every=10, burst=1, came_back=True)
        if wait:
            due.append(clock.now + wait)
            due.sort()
        else:
            starts.append(clock.now)
    assert len(starts) == 50
    assert min(later - earlier for earlier, later in pairwise(starts)) >= 9.7
    assert starts[-1] - starts[0] <= 600
    assert looks <= 150


def test_threads_never_get_the_same_slot(store: Store) -> None:
    waits: list[float] = []

    def reserve() -> None:
        for _ in range(20):
            waits.append(store.reserve("k", every=100, burst=1, came_back=False))

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(waits) == pytest.approx([100.0 * n for n in range(80)])
