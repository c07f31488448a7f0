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


def enter(store: Store, job_id: str, *, places: int = 2, came_back: bool = False) -> float:
    return store.enter("k", job_id, places=places, ttl=30, came_back=came_back)[0]


def test_no_more_than_the_places_are_taken(store: Store, clock: Clock) -> None:
    assert [enter(store, job_id) for job_id in "ab"] == [0, 0]
    assert enter(store, "c") > 0
    assert enter(store, "a") == 0, "who has a place keeps it"
    assert store.enter("other", "c", places=1, ttl=30, came_back=False) == (0, 0)


def test_who_waits_is_not_overtaken(store: Store, clock: Clock) -> None:
    enter(store, "a", places=1)
    wait = enter(store, "b", places=1)
    store.leave("k", "a")
    assert enter(store, "c", places=1) > wait
    clock.now += wait
    assert enter(store, "b", places=1, came_back=True) == 0


def test_the_place_of_one_that_died_is_free_when_its_time_is_over(store: Store, clock: Clock) -> None:
    enter(store, "a", places=1)
    clock.now += 29
    store.stay("k", "a", ttl=30)
    clock.now += 29
    assert enter(store, "b", places=1) > 0
    clock.now += 2
    assert enter(store, "b", places=1, came_back=True) == 0


def test_to_stay_takes_no_place_that_was_given_back(store: Store, clock: Clock) -> None:
    enter(store, "a", places=1)
    store.leave("k", "a")
    store.stay("k", "a", ttl=30)
    assert enter(store, "b", places=1) == 0


def test_about_how_many_wait_before_it_is_told(store: Store, clock: Clock) -> None:
    enter(store, "a", places=1)
    clock.now += 10
    before = [store.enter("k", f"w{n}", places=1, ttl=100, came_back=False)[1] for n in range(3)]
    assert before[0] == 0
    assert sorted(before) == before


@pytest.mark.parametrize("seconds", [0.02, 2.0])
def test_many_that_wait_all_get_their_places_and_rarely_look_in_vain(
    store: Store, clock: Clock, seconds: float
) -> None:
    """300 jobs of one length and three places, by a clock that jumps from event to event."""
    events = [(clock.now + n * 0.001, n, "come", f"job-{n}") for n in range(300)]
    inside: set[str] = set()
    looks, most, began, order = 0, 0, clock.now, 300
    while events:
        events.sort()
        at, _, what, job = events.pop(0)
        clock.now = max(clock.now, at)
        order += 1
        if what == "leave":
            store.leave("k", job)
            inside.discard(job)
            continue
        looks += 1
        wait = enter(store, job, places=3, came_back=what == "look")
        if wait:
            events.append((clock.now + wait, order, "look", job))
        else:
            inside.add(job)
            most = max(most, len(inside))
            events.append((clock.now + seconds, order, "leave", job))
    assert most == 3
    ideal = 300 * seconds / 3
    assert clock.now - began < 1.6 * ideal + 2
    assert looks <= 300 * 6 + 12 * (clock.now - began)
