"""A store in Redis is killed, frozen and restarted under workers: jobs go on, and what can be told is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from callboard.brokers.file import FileDriver
from callboard.errors import NotQueued
from callboard.servers import PrivateRedis
from callboard.states import State
from tests.conformance.rig import Rig, dismantle, make_rig
from tests.patience import until

PATIENCE = 60.0


@pytest.fixture
def rig(own_redis: PrivateRedis, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A broker in a file, whose store is a Redis of this test's own."""
    folder = request.getfixturevalue("tmp_path")
    rig = make_rig("file", "callboard", lambda: FileDriver(folder / "var"), store_url=own_redis.url)
    yield rig
    dismantle(rig)


@pytest.fixture
def note(rig: Rig) -> Any:
    @rig.actor()
    def note(text: str) -> None:
        ran.append(text)

    ran: list[str] = []
    note.ran = ran
    return note


def _record(rig: Rig, job: Any) -> Callable[[], bool]:
    def succeeded() -> bool:
        record = rig.record(job)
        return record is not None and record.state is State.SUCCEEDED

    return succeeded


def test_jobs_run_while_the_store_is_killed_and_their_records_follow(
    rig: Rig, note: Any, own_redis: PrivateRedis
) -> None:
    rig.start()
    rig.reaches(note.send("before"), State.SUCCEEDED)
    own_redis.kill()
    jobs = [note.send(f"{n}") for n in range(30)]
    until(lambda: len(note.ran) == 31)
    with pytest.raises(NotQueued):
        note.using(unique="one at a time").send("unique")
    own_redis.start()
    for job in jobs:
        until(_record(rig, job))
    until(lambda: rig.broker.control is not None and rig.broker.control.is_current)
    assert rig.store.counters("records.") == {}


def test_jobs_run_at_their_pace_while_the_store_stands_still(
    rig: Rig, note: Any, own_redis: PrivateRedis
) -> None:
    rig.start()
    rig.reaches(note.send("before"), State.SUCCEEDED)
    with own_redis.frozen():
        started = time.monotonic()
        jobs = [note.send(f"{n}") for n in range(100)]
        until(lambda: len(note.ran) == 101)
        took = time.monotonic() - started
    assert took < 100 * 5.0 / 10, "jobs waited for the store"
    for job in jobs[-3:]:
        until(_record(rig, job))


def test_a_cancellation_that_was_asked_before_the_store_was_killed_still_holds(
    rig: Rig, own_redis: PrivateRedis
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran = []

    @rig.actor()
    def hold() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    @rig.actor()
    def never() -> None:
        ran.append(1)

    rig.start(threads=1)
    first = hold.send()
    assert begun.wait(PATIENCE)
    second = never.send()
    rig.store.cancel(second.message_id, at=time.time())
    assert rig.broker.control is not None
    until(lambda: second.message_id in rig.broker.control.cancelled)  # type: ignore[union-attr]
    own_redis.kill()
    go_on.set()
    own_redis.restart()
    rig.reaches(second, State.CANCELLED)
    rig.reaches(first, State.SUCCEEDED)
    assert ran == []
