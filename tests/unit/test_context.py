"""What a job sees of its run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from callboard.context import (
    MAX_CHECKPOINT_BYTES,
    Cancelled,
    NoCurrentJob,
    Run,
    current_job,
    enter_run,
)
from callboard.errors import CheckpointTooLarge


class Reports:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.progress: list[tuple[float | None, str]] = []
        self.cancelled = False
        self.states: dict[str, bytes] = {}

    def report_progress(self, run: Run, fraction: float | None, note: str) -> None:
        self.progress.append((fraction, note))

    def is_cancelled(self, job_id: str) -> bool:
        return self.cancelled

    def save_checkpoint(self, job_id: str, state: bytes) -> None:
        self.states[job_id] = state

    def load_checkpoint(self, job_id: str) -> bytes | None:
        return self.states.get(job_id)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def run(reports: Reports) -> Iterator[Run]:
    run = Run(job_id="job-1", actor="work", queue="jobs.medium", attempt=1, reporter=reports)
    enter_run(run)
    yield run
    enter_run(None)


def test_outside_of_a_job_there_is_none() -> None:
    with pytest.raises(NoCurrentJob, match="inside an actor"):
        current_job()


def test_progress_for_each_row_is_reported_now_and_then_and_at_the_end(run: Run, reports: Reports) -> None:
    for row in range(50_000):
        current_job().progress(row / 50_000, f"{row} rows")
    run.report()
    assert reports.progress[0] == (0.0, "0 rows")
    assert reports.progress[-1] == (49_999 / 50_000, "49999 rows")
    assert len(reports.progress) < 100


def test_progress_is_a_fraction(run: Run) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        run.progress(40)


def test_a_checkpoint_is_there_for_the_next_run(run: Run, reports: Reports) -> None:
    assert run.last_checkpoint() is None
    run.checkpoint({"row": 7})
    following = Run(job_id="job-1", actor="work", queue="jobs.medium", attempt=2, reporter=reports)
    assert following.last_checkpoint() == {"row": 7}


def test_a_checkpoint_that_is_too_large_is_refused_and_the_last_one_stays(run: Run) -> None:
    run.checkpoint("x" * (MAX_CHECKPOINT_BYTES - 2))
    with pytest.raises(CheckpointTooLarge, match="checkpoint of 'work' has 1,048,577 bytes, over the limit"):
        run.checkpoint("y" * (MAX_CHECKPOINT_BYTES - 1))
    assert set(run.last_checkpoint()) == {"x"}


def test_a_job_can_end_itself_when_it_was_cancelled(run: Run, reports: Reports) -> None:
    run.stop_if_cancelled()
    reports.cancelled = True
    assert run.cancelled()
    with pytest.raises(Cancelled):
        run.stop_if_cancelled()


def test_the_deadline_is_the_end_of_the_time_limit(run: Run) -> None:
    assert run.deadline is None
    run.time_limit = 60
    assert run.deadline is not None
    left = run.deadline.timestamp() - time.time()
    assert 50 < left <= 60.1


def _in_body(run: Run, raised: list[BaseException]) -> tuple[threading.Thread, threading.Event]:
    inside = threading.Event()

    def body() -> None:
        inside.set()
        while True:
            time.sleep(0.001)

    def thread() -> None:
        try:
            run.call(body, (), {})
        except BaseException as error:
            raised.append(error)

    running = threading.Thread(target=thread)
    running.start()
    return running, inside


def test_an_interrupt_reaches_the_body_and_only_once(run: Run) -> None:
    raised: list[BaseException] = []
    running, inside = _in_body(run, raised)
    assert inside.wait(30)
    assert run.interrupt(TimeLimitExceeded)
    assert not run.interrupt(Shutdown)
    running.join(30)
    assert [type(error) for error in raised] == [TimeLimitExceeded]


def test_before_and_after_the_body_an_interrupt_does_nothing(run: Run) -> None:
    assert not run.interrupt(Shutdown)
    assert run.call(lambda: 7, (), {}) == 7
    assert not run.interrupt(Shutdown)


def test_an_interrupt_at_any_moment_of_a_short_body_ends_it_or_is_swallowed() -> None:
    """The run's own bookkeeping never sees it: what comes out is the result or the interrupt."""
    outcomes = set()
    for n in range(300):
        run = Run(job_id=f"job-{n}", actor="work", queue="q", attempt=1, reporter=Reports())
        outcome: list[object] = []

        def thread(run: Run = run, outcome: list[object] = outcome) -> None:
            try:
                outcome.append(run.call(lambda: sum(range(2000)), (), {}))
            except TimeLimitExceeded as error:
                outcome.append(type(error))
            for _ in range(100):
                pass

        running = threading.Thread(target=thread)
        running.start()
        while running.is_alive() and not run.interrupt(TimeLimitExceeded):
            time.sleep(0)
        running.join(30)
        assert outcome in ([1999000], [TimeLimitExceeded])
        outcomes.add(outcome[0])
    assert outcomes <= {1999000, TimeLimitExceeded}
