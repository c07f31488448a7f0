"""Which queues a worker consumes."""

from __future__ import annotations

import pytest

from callboard.errors import AppError, UnknownQueue
from callboard.worker.patterns import select_queues

DECLARED = ["email.low", "email.high", "email.critical", "billing.critical", "default"]


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        ([], sorted(DECLARED)),
        (["email.*"], ["email.critical", "email.high", "email.low"]),
        (["email.*,*.critical"], ["billing.critical", "email.critical", "email.high", "email.low"]),
        (["email.high", "default"], ["default", "email.high"]),
        ([" email.low , "], ["email.low"]),
    ],
)
def test_patterns_select_declared_queues(patterns: list[str], selected: list[str]) -> None:
    assert select_queues(DECLARED, patterns) == selected


@pytest.mark.parametrize("pattern", ["emial.*", "EMAIL.*", "email"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_queues_that_there_are(pattern: str) -> None:
    with pytest.raises(UnknownQueue) as refused:
        select_queues(DECLARED, ["email.*", pattern])
    assert f"'{pattern}'" in str(refused.value)
    assert "billing.critical, default, email.critical" in str(refused.value)


def test_an_application_without_actors_is_refused() -> None:
    with pytest.raises(AppError, match="declares no actors"):
        select_queues([], [])
