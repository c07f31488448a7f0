"""What jobs can do to the event loop that they share."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq.middleware.threading import Interrupt, raise_thread_exception
from structlog.testing import capture_logs

from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.states import State
from callboard.worker.event_loop import EventLoopBroke, JobLoopThread
from callboard.worker.worker import Worker

BOUND = 30.0


@pytest.fixture
def thread() -> Iterator[JobLoopThread]:
    thread = JobLoopThread(logging.getLogger(__name__))
    thread.start(timeout=BOUND)
    yield thread
    thread.stop()
    assert not thread.is_alive()


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), ValueError("no"), TimeoutError("late")]
)
def test_what_a_coroutine_raises_is_raised_where_it_is_waited_for(
    thread: JobLoopThread, error: BaseException
) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)) as raised:
        thread.run_coroutine(fails())
    assert raised.value is error
    assert thread.run_coroutine(seven()) == 7


def test_a_task_that_exits_fails_the_job_that_waits_for_it_and_no_other(thread: JobLoopThread) -> None:
    async def exits() -> None:
        sys.exit(3)

    async def waits() -> None:
        await asyncio.create_task(exits())

    other = Neighbour(thread)
    with pytest.raises(SystemExit):
        thread.run_coroutine(waits())
    assert other.finish() == 7


def test_a_job_that_stops_the_loop_goes_on_and_so_do_the_others(thread: JobLoopThread) -> None:
    async def stops() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)
        return "went on"

    other = Neighbour(thread)
    assert thread.run_coroutine(stops()) == "went on"
    assert other.finish() == 7


def test_where_the_loop_breaks_its_jobs_fail_and_the_next_ones_have_a_new_one(thread: JobLoopThread) -> None:
    async def breaks() -> None:
        os.close(asyncio.get_running_loop()._selector.fileno())  # type: ignore[attr-defined]
        await asyncio.sleep(BOUND)

    other = Neighbour(thread)
    with capture_logs() as lines:
        with pytest.raises(EventLoopBroke, match="closes file descriptors"):
            thread.run_coroutine(breaks())
        with pytest.raises(EventLoopBroke):
            other.finish()
        assert eventually(thread) == 7
    assert [line["event"] for line in lines if "broke" in line["event"]] != []


def test_an_interrupt_cancels_the_coroutine_and_waits_for_its_cleaning_up(thread: JobLoopThread) -> None:
    began, cleaned = threading.Event(), threading.Event()

    async def runs() -> None:
        began.set()
        try:
            await asyncio.sleep(BOUND)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    outcome: list[Any] = []

    def job() -> None:
        try:
            thread.run_coroutine(runs())
        except Interrupt as interrupt:
            outcome.append((interrupt, cleaned.is_set()))

    waiting = threading.Thread(target=job)
    waiting.start()
    assert began.wait(BOUND)
    assert waiting.ident is not None
    raise_thread_exception(waiting.ident, Interrupt)  # type: ignore[no-untyped-call]
    waiting.join(BOUND)
    ((interrupt, was_clean),) = outcome
    assert type(interrupt) is Interrupt
    assert was_clean
    assert thread.run_coroutine(seven()) == 7


def test_after_its_end_a_job_is_told(thread: JobLoopThread) -> None:
    thread.stop()
    coroutine = seven()
    with pytest.raises(EventLoopBroke):
        thread.run_coroutine(coroutine)
    coroutine.close()


class Neighbour:
    """A job that runs in the loop until it may finish."""

    def __init__(self, thread: JobLoopThread) -> None:
        self._result: Any = None
        self._may_finish = asyncio.Event()
        self._loop = thread.loop
        began = threading.Event()

        async def runs() -> int:
            began.set()
            await self._may_finish.wait()
            return 7

        def job() -> None:
            try:
                self._result = thread.run_coroutine(runs())
            except EventLoopBroke as error:
                self._result = error

        self._thread = threading.Thread(target=job)
        self._thread.start()
        assert began.wait(BOUND)

    def finish(self) -> Any:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._may_finish.set)
        self._thread.join(BOUND)
        assert not self._thread.is_alive()
        if isinstance(self._result, EventLoopBroke):
            raise self._result
        return self._result


def eventually(thread: JobLoopThread) -> int:
    """The new loop may take a moment."""
    end = time.monotonic() + BOUND
    while True:
        coroutine = seven()
        try:
            return thread.run_coroutine(coroutine)
        except EventLoopBroke:
            coroutine.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def test_an_async_job_that_exits_dies_of_it_and_the_next_one_runs(
    broker: Broker, actor: ActorDecorator, working: Callable[..., Worker]
) -> None:
    ended = threading.Event()

    @actor(category="jobs", retries=0)
    async def leave() -> None:
        sys.exit(3)

    @actor(category="jobs")
    async def stay() -> None:
        ended.set()

    message = leave.send()
    working(threads=1)
    broker.join("jobs.medium", timeout=int(BOUND * 1000))
    stay.send()
    assert ended.wait(BOUND)
    assert broker.recorder is not None and broker.store is not None
    assert broker.recorder.flush()
    record = broker.store.get(message.message_id)
    assert record is not None
    assert (record.state, record.reason) == (State.DEAD, "failed once: SystemExit: 3")
