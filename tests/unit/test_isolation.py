"""What an actor may say of how its jobs are kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from callboard.errors import DeclarationError
from callboard.isolation import Isolation, isolation_of


@pytest.mark.parametrize(
    ("size", "found"), [("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5k", 1_500), ("4096", 4_096), (7, 7)]
)
def test_a_size_is_read(size: int | str, found: int) -> None:
    assert Isolation(memory=size).memory_bytes == found


@pytest.mark.parametrize(
    "options",
    [{"memory": "much"}, {"memory": 0}, {"memory": -1}, {"memory": True}, {"max_jobs": 0}, {"max_jobs": "3"}],
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        Isolation(**options)


def test_an_actor_says_true_false_or_an_isolation() -> None:
    assert isolation_of(None) is None
    assert isolation_of(False) is None
    assert isolation_of(True) == Isolation()
    with pytest.raises(DeclarationError, match="must be True, False or an Isolation"):
        isolation_of("2GiB")
