"""Where the worker of a test is killed: at a point of a run, or at a call that the job makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from callboard.testing.failures import NeverCrashed
from callboard.worker.crash import CrashPoint, Point, around_calls
from callboard.worker.inline import InlineWorker


@contextmanager
def at(
    worker: InlineWorker,
    point: Point | Callable[..., Any],
    *,
    nth: int,
    after: bool,
    actor_name: str | None,
) -> Iterator[CrashPoint]:
    """Kill the worker in this block, which has to come to the point: see `Jobs.crash_at`."""
    if isinstance(point, str):
        if after:
            raise ValueError("after= is for functions; a named point says itself where it lies")
        with armed(worker, point, nth=nth, actor_name=actor_name) as crash:
            yield crash
        what = f"the point {point!r}"
    else:
        before_call, after_call = (_nothing, worker.strike) if after else (worker.strike, _nothing)
        with (
            around_calls(point, before=before_call, after=after_call),
            armed(worker, None, nth=nth, actor_name=actor_name) as crash,
        ):
            yield crash
        what = f"{'the end of ' if after else ''}a call of {getattr(point, '__qualname__', point)}"
    if not crash.struck:
        passed = f"it was passed {crash.passed} times, not {nth}" if crash.passed else "none was passed"
        raise NeverCrashed(f"the worker was to be killed at {what}, and no run came to it: {passed}")


@contextmanager
def armed(
    worker: InlineWorker,
    point: Point | None,
    *,
    nth: int = 1,
    actor_name: str | None = None,
    job_id: str | None = None,
) -> Iterator[CrashPoint]:
    """Kill the worker in this block, should a run come to the point."""
    if worker.crash is not None:
        raise ValueError("the worker is to be killed at another point already; it dies once")
    worker.crash = crash = CrashPoint(point, nth=nth, actor_name=actor_name, job_id=job_id)
    try:
        yield crash
    finally:
        worker.crash = None


def _nothing() -> None: ...
