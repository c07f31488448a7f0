"""Cancellation and limits on every driver, under both workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from callboard import ConcurrencyLimit, RateLimit, State
from callboard.errors import StoreUnavailable
from tests.conformance.rig import PATIENCE, Rig
from tests.patience import until

pytestmark = pytest.mark.usefixtures("plain_tracebacks")


def test_a_cancelled_run_that_does_not_look_is_interrupted(rig: Rig) -> None:
    running = threading.Event()

    @rig.actor(cancel_grace=timedelta(milliseconds=1))
    def deaf() -> None:
        running.set()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.01)

    sent = deaf.send()
    rig.start()
    assert running.wait(PATIENCE)
    rig.store.cancel(sent.message_id, at=time.time())
    reason = rig.reaches(sent, State.CANCELLED).reason
    assert reason == "cancelled while it ran, and interrupted after 0.001 s"
    rig.finish()
    assert len(rig.starts(sent)) == 1


def test_jobs_with_a_rate_start_that_often_and_use_no_attempt(rig: Rig) -> None:
    started: list[float] = []

    @rig.actor(rate=RateLimit("5/s", name=rig.category))
    def call() -> None:
        started.append(time.monotonic())

    sent = [call.send() for _ in range(6)]
    begun = time.monotonic()
    rig.start(threads=4)
    for message in sent:
        rig.reaches(message, State.SUCCEEDED)
    rig.finish()
    assert len(started) == 6
    # Two may come closer together than the spacing, but never all.
    assert max(started) - begun >= 0.2 * 4 - 0.01
    waited = [start for message in sent for start in rig.starts(message) if start.headers.hop]
    assert all((start.headers.attempt, start.headers.snoozes) == (0, 0) for start in waited)


def test_each_value_of_the_key_has_a_rate_of_its_own(rig: Rig) -> None:
    seen: list[str] = []

    @rig.actor(rate=RateLimit("1/hour", key="tenant", name=rig.category))
    def call(tenant: str) -> None:
        seen.append(tenant)

    rig.start()
    rig.reaches(call.send(tenant="a"), State.SUCCEEDED)
    rig.reaches(call.send(tenant="b"), State.SUCCEEDED)
    waiting = rig.reaches(call.send(tenant="a"), State.SNOOZED)
    assert waiting.reason == f"waits for the rate limit of {rig.category}, a, 1/hour"
    assert waiting.due_at is not None
    assert 3000 < waiting.due_at - time.time() <= 3601
    rig.finish(delayed=1)
    assert sorted(seen) == ["a", "b"]


def test_while_the_store_is_away_jobs_with_a_rate_wait_and_others_run(rig: Rig, monkeypatch: Any) -> None:
    @rig.actor(rate=RateLimit("1000/s", name=rig.category))
    def call() -> None: ...

    @rig.actor()
    def free() -> None: ...

    away = threading.Event()
    away.set()
    reserve: Callable[..., float] = rig.store.reserve

    def reserve_if_there(*args: Any, **kwargs: Any) -> float:
        if away.is_set():
            raise StoreUnavailable("it is away")
        return reserve(*args, **kwargs)

    monkeypatch.setattr(rig.store, "reserve", reserve_if_there)
    monkeypatch.setattr("middleware.rate_limits.STORE_AWAY", 0.2)
    waiting, running = call.send(), free.send()
    rig.start()
    rig.reaches(running, State.SUCCEEDED)
    until(lambda: (r := rig.record(waiting)) is not None and r.reason.startswith("waits for the store"))
    away.clear()
    rig.reaches(waiting, State.SUCCEEDED)
    rig.finish()


def test_no_more_run_at_once_than_the_limit_and_all_run(rig: Rig) -> None:
    lock = threading.Lock()
    inside: dict[str, int] = {"a": 0, "b": 0}
    most: dict[str, int] = {"a": 0, "b": 0}

    @rig.actor(concurrency=ConcurrencyLimit(1, key="tenant", name=rig.category))
    def work(tenant: str) -> None:
        with lock:
            inside[tenant] += 1
            most[tenant] = max(most[tenant], inside[tenant])
        time.sleep(0.05)
        with lock:
            inside[tenant] -= 1

    sent = [work.send(tenant=tenant) for tenant in "aaaab"]
    rig.start(threads=2)
    rig.start(threads=2)
    for message in sent:
        rig.reaches(message, State.SUCCEEDED)
    rig.finish()
    assert most == {"a": 1, "b": 1}
    assert all(start.headers.attempt == 0 for message in sent for start in rig.starts(message))


def test_who_waits_for_a_place_holds_no_thread_and_says_so(rig: Rig) -> None:
    started, release = threading.Event(), threading.Event()

    @rig.actor(concurrency=ConcurrencyLimit(1, name=rig.category))
    def hold() -> None:
        started.set()
        assert release.wait(PATIENCE)

    @rig.actor()
    def free() -> None: ...

    first = hold.send()
    rig.start(threads=2)
    assert started.wait(PATIENCE)
    second = hold.send()
    until(
        lambda: (r := rig.record(second)) is not None and r.reason == f"waits for the place of {rig.category}"
    )
    rig.reaches(free.send(), State.SUCCEEDED)
    release.set()
    rig.reaches(first, State.SUCCEEDED)
    rig.reaches(second, State.SUCCEEDED)
    rig.finish()


def test_a_failed_run_gives_its_place_back(rig: Rig) -> None:
    @rig.actor(concurrency=ConcurrencyLimit(1, name=rig.category), retries=0)
    def bad() -> None:
        raise ValueError("no")

    sent = [bad.send() for _ in range(2)]
    rig.start()
    for message in sent:
        rig.reaches(message, State.DEAD)
    assert rig.store.enter(f"{rig.category}:", "another", places=1, ttl=1, came_back=True)[0] == 0
    rig.finish()
