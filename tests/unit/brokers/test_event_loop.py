"""Sending on an event loop: what waits without blocking, and the warning for what blocks."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from dramatiq import Message, Middleware

from callboard import CallboardWarning, NotQueued, State
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import Delivery, Outgoing, PutError
from callboard.brokers.stub import StubDriver
from callboard.client import Client
from callboard.worker.worker import Worker

Claim = Callable[[], list[Delivery]]


@pytest.fixture
def note(actor: ActorDecorator) -> Any:
    @actor(category="jobs")
    def note(text: str) -> None: ...

    return note


class Slow:
    """Stands in the driver's place for `put_async`: goes on when the test says so."""

    def __init__(self, driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.error: PutError | None = None
        self._driver = driver
        monkeypatch.setattr(driver, "put_async", self)

    async def __call__(self, messages: list[Outgoing], *, deadline: float) -> None:
        self.begun.set()
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        self._driver.put(messages, deadline=deadline)


@pytest.fixture
def driver(broker: Broker) -> StubDriver:
    assert isinstance(broker.driver, StubDriver)
    return broker.driver


def test_an_async_send_of_a_few_jobs_uses_no_thread(
    note: Any, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(asyncio, "to_thread", refused)

    async def send() -> list[Message[Any]]:
        return [await note.send_async("a"), *await note.send_many_async([{"text": "b"}, {"text": "c"}])]

    assert len(asyncio.run(send())) == len(claim()) == 3


def test_many_jobs_are_checked_beside_the_event_loop(
    broker: Broker, actor: ActorDecorator, claim: Claim
) -> None:
    threads: set[int] = set()

    class Watch(Middleware):
        def before_enqueue(self, *_: Any) -> None:
            threads.add(threading.get_ident())

    broker.add_middleware(Watch())

    @actor(category="jobs")
    def count(number: int) -> None: ...

    sent = asyncio.run(count.send_many_async({"number": n} for n in range(500)))
    assert [message.kwargs["number"] for message in sent] == list(range(500))
    assert len(claim()) == 500
    assert threads and threading.get_ident() not in threads


def test_an_async_send_is_recorded_and_is_checked_as_any_other(note: Any, broker: Broker) -> None:
    message = asyncio.run(note.send_async("a"))
    assert broker.recorder is not None and broker.store is not None
    assert broker.recorder.flush(30)
    record = broker.store.get(message.message_id)
    assert record is not None and record.state is State.QUEUED
    with pytest.raises(ValueError, match="text"):
        asyncio.run(note.send_async(1))


def test_an_async_send_of_a_unique_job_that_fails_leaves_its_key_free(note: Any, driver: StubDriver) -> None:
    driver.fail_puts = "away"
    with pytest.raises(NotQueued):
        asyncio.run(note.using(unique="k", job_id="one").send_async("a"))
    driver.fail_puts = None
    sent = asyncio.run(note.using(unique="k", job_id="two").send_async("a"))
    again = asyncio.run(note.using(unique="k", job_id="three").send_async("a"))
    assert (sent.message_id, again.message_id) == ("two", "two")


def test_a_cancelled_send_goes_on_behind_its_task(
    note: Any, driver: StubDriver, broker: Broker, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancel() -> str:
        slow = Slow(driver, monkeypatch)
        task = asyncio.create_task(note.using(job_id="cancelled").send_async("a"))
        await slow.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.may_go_on.set()
        await asyncio.wait(broker._tasks, timeout=30)
        return "went on"

    assert asyncio.run(cancel()) == "went on"
    assert len(claim()) == 1
    assert broker.recorder is not None and broker.store is not None
    assert broker.recorder.flush(30)
    assert broker.store.get("cancelled") is not None


def test_the_failure_of_a_cancelled_send_is_told_to_nobody(
    note: Any, driver: StubDriver, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []

    async def cancel() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        slow = Slow(driver, monkeypatch)
        slow.error = PutError("away")
        task = asyncio.create_task(note.send_async("a"))
        await slow.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.may_go_on.set()
        await asyncio.wait(broker._tasks, timeout=30)

    asyncio.run(cancel())
    assert not complaints


def test_a_loop_that_ends_ends_the_send_quietly(
    note: Any, driver: StubDriver, broker: Broker, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave() -> None:
        slow = Slow(driver, monkeypatch)
        waiting = asyncio.create_task(note.send_async("a"))
        await slow.begun.wait()
        waiting.cancel()

    asyncio.run(leave())
    assert not claim()
    assert not broker._tasks


# -- blocking on a loop


def test_a_send_on_an_event_loop_warns_once_for_each_line(note: Any, broker: Broker) -> None:
    client = Client(broker)

    async def send_in_a_loop() -> None:
        for text in "abc":
            note.send(text)
            note.using(tags=["t"]).send_many([{"text": text}])
            client.send("note", {"text": text})

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        asyncio.run(send_in_a_loop())
    told = [warning for warning in caught if warning.category is CallboardWarning]
    assert [warning.filename for warning in told] == [__file__] * 3
    first = send_in_a_loop.__code__.co_firstlineno
    assert [warning.lineno - first for warning in told] == [2, 3, 4]
    assert "send_async" in str(told[0].message)


def test_a_send_in_an_async_actor_warns_and_in_a_plain_one_does_not(
    note: Any, actor: ActorDecorator, broker: Broker, working: Callable[..., Worker]
) -> None:
    @actor(category="jobs")
    def plain() -> None:
        note.send("plain")

    @actor(category="jobs")
    async def asynchronous() -> None:
        note.send("async")

    working()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain.send()
        broker.join("jobs.medium", timeout=30_000)
        assert not [warning for warning in caught if warning.category is CallboardWarning]
        asynchronous.send()
        broker.join("jobs.medium", timeout=30_000)
    assert [w.filename for w in caught if w.category is CallboardWarning] == [__file__]


def test_an_async_send_warns_of_nothing(note: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(note.send_async("a"))
        asyncio.run(note.using(unique="in a thread").send_async("a"))
