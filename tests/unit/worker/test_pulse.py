"""Whether a worker process' consumers live."""

from __future__ import annotations

import pytest

from callboard.worker.pulse import Pulse, PulseMemory, StallDetector

PID = 42


class Case:
    """A process, its pulse and its detector, a second at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pulse: Pulse = PulseMemory(2).of(1)
        self.detector = StallDetector(60.0, lambda: self.now)

    def live(
        self, seconds: int, *, has_work: bool, turns: bool = True, beats: bool = True, claims: bool = False
    ) -> None:
        for _ in range(seconds):
            self.now += 1
            if turns:
                self.pulse.turned(1 if claims else 0)
            if beats:
                self.pulse.beat()
            self.look(has_work=has_work)

    def look(self, *, has_work: bool) -> None:
        self.detector.look(PID, self.pulse, self.detector.elapsed(), has_work=has_work)

    def replaced(self, *, runs_jobs: bool = True) -> bool:
        return self.detector.needs_replacing(PID, runs_jobs=runs_jobs)


@pytest.fixture
def case() -> Case:
    case = Case()
    case.live(5, has_work=True, claims=True)
    return case


def test_a_process_that_claims_is_well(case: Case) -> None:
    case.live(300, has_work=True, claims=True)
    assert case.detector.consumes(PID)
    assert not case.detector.has_stalled(PID)
    assert not case.replaced()


def test_a_process_that_has_nothing_to_do_is_well(case: Case) -> None:
    case.live(300, has_work=False)
    assert case.detector.consumes(PID)
    assert not case.detector.has_stalled(PID)


def test_a_claiming_thread_that_stands_still_while_messages_wait_has_to_go(case: Case) -> None:
    case.live(59, has_work=True, turns=False)
    assert not case.detector.has_stalled(PID)
    case.live(2, has_work=True, turns=False)
    assert case.detector.has_stalled(PID)
    assert case.replaced()
    assert not case.detector.consumes(PID)


def test_one_that_stands_still_while_nothing_waits_is_told_and_let_be(case: Case) -> None:
    case.live(300, has_work=False, turns=False)
    assert not case.detector.consumes(PID)
    assert not case.detector.has_stalled(PID)
    assert not case.replaced()


def test_one_that_goes_round_and_claims_nothing_is_told_and_let_be(case: Case) -> None:
    case.live(300, has_work=True)
    assert case.detector.has_stalled(PID)
    assert not case.replaced()


def test_a_job_that_keeps_python_s_lock_may_come_to_its_end(case: Case) -> None:
    case.live(300, has_work=True, turns=False, beats=False)
    assert case.detector.has_stalled(PID)
    assert not case.replaced(runs_jobs=True)


def test_a_process_in_which_nothing_moves_at_all_has_to_go(case: Case) -> None:
    case.live(300, has_work=True, turns=False, beats=False)
    assert case.replaced(runs_jobs=False)


def test_work_that_waits_only_now_and_then_says_nothing(case: Case) -> None:
    for _ in range(20):
        case.live(50, has_work=True, turns=False)
        case.live(1, has_work=False, turns=False)
    assert not case.detector.has_stalled(PID)


def test_a_process_that_recovers_is_well_again(case: Case) -> None:
    case.live(100, has_work=True, turns=False)
    assert case.detector.has_stalled(PID)
    case.live(1, has_work=True, claims=True)
    assert not case.detector.has_stalled(PID)


def test_a_supervisor_that_was_frozen_itself_blames_nobody(case: Case) -> None:
    case.now += 3600
    case.look(has_work=True)
    assert not case.detector.has_stalled(PID)
    assert case.detector.consumes(PID)


def test_a_process_that_hasn_t_claimed_yet_doesn_t_consume_yet() -> None:
    case = Case()
    case.look(has_work=False)
    assert not case.detector.consumes(PID)
    case.live(1, has_work=False)
    assert case.detector.consumes(PID)


def test_a_pulse_is_another_s_when_it_is_cleared(case: Case) -> None:
    assert any(case.pulse.read())
    case.pulse.clear()
    assert not any(case.pulse.read())
