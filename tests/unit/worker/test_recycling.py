"""When a worker process has done enough."""

from __future__ import annotations

import os

import pytest

from callboard.errors import SettingsError
from callboard.worker import recycling
from callboard.worker.recycling import Enough


def test_a_process_may_do_whatever_it_likes_unless_something_else_is_said() -> None:
    assert not Enough()
    assert Enough().reason(os.getpid(), 10**9) is None


def test_after_so_many_jobs_it_is_enough() -> None:
    enough = Enough(jobs=100)
    assert enough
    assert enough.reason(os.getpid(), 99) is None
    assert enough.reason(os.getpid(), 100) == "it has done 100 jobs, of 100 that it may"


def test_with_so_much_memory_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, "resident_memory", {os.getpid(): 1 << 20, 7: 301 << 20}.get)
    enough = Enough(memory=300 << 20)
    assert enough
    assert enough.reason(os.getpid(), 10**9) is None
    assert enough.reason(7, 0) == "it uses 301 MiB, of 300 that it may"
    assert enough.reason(8, 0) is None  # it has just ended


def test_where_nobody_knows_the_memory_a_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, "resident_memory", lambda pid: None)
    with pytest.raises(SettingsError, match="--max-memory needs Linux"):
        Enough(memory=1 << 30)


@pytest.mark.parametrize("limits", [{"jobs": 0}, {"memory": -1}])
def test_limits_are_above_zero(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be above zero"):
        Enough(**limits)
