"""How many jobs a worker holds ready."""

from __future__ import annotations

import pytest

from callboard.worker.pace import AHEAD_MOST, Pace, budget


def _paced(threads: int, *seconds: float) -> Pace:
    pace = Pace(threads)
    for each in seconds:
        pace.note(each)
    return pace


def test_nothing_is_held_ready_before_a_job_has_ended() -> None:
    pace = Pace(8)
    assert pace.ahead(pace.expect([])) == 0
    assert pace.ahead(pace.expect([0.001] * 8)) == 0


@pytest.mark.parametrize(
    ("seconds", "ahead"),
    [(0.0, AHEAD_MOST), (0.0001, AHEAD_MOST), (0.01, 40), (0.1, 4), (0.4, 1), (1.0, 0), (10.0, 0)],
)
def test_what_waits_is_the_work_of_the_next_50_milliseconds(seconds: float, ahead: int) -> None:
    pace = _paced(8, *[seconds] * 10)
    assert pace.ahead(pace.mean) == pytest.approx(ahead, abs=1 if ahead > 1 else 0)


def test_a_mixture_with_long_jobs_counts_as_long() -> None:
    pace = _paced(8, *[0.0, 0.001, 0.01, 1.0] * 25)
    assert pace.ahead(pace.mean) <= 2


def test_while_all_threads_are_held_up_jobs_take_at_least_as_long_as_they_have_taken() -> None:
    pace = _paced(2, *[0.001] * 10)
    assert pace.ahead(pace.expect([60.0])) == 100, "a thread is free"
    assert pace.ahead(pace.expect([60.0, 0.0])) == 100, "a thread has just become free"
    assert pace.ahead(pace.expect([60.0, 3.0])) == 0


def test_the_mean_rises_faster_than_it_falls() -> None:
    pace = _paced(8, 0.1)
    pace.note(1.1)
    risen = pace.mean
    assert risen == pytest.approx(0.2)
    pace.note(0.0)
    assert risen is not None
    assert pace.mean is not None
    assert risen * 0.95 < pace.mean < risen


@pytest.mark.parametrize(("queues", "held"), [(1, 264), (6, 264), (24, 968), (200, 1032)])
def test_a_worker_of_many_queues_may_hold_more_up_to_a_bound(queues: int, held: int) -> None:
    assert budget(8, queues) == held
