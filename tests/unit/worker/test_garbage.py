"""How often a worker process looks for garbage."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOOK = (
    "import gc; gc.set_threshold({before}, 7, 8)\n"
    "from callboard.worker.garbage import look_for_garbage_less_often\n"
    "look_for_garbage_less_often()\n"
    "print(gc.get_freeze_count() > 0, *gc.get_threshold())"
)


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (50_000, 50_000), (0, 0)])
def test_a_worker_looks_for_garbage_less_often_unless_the_application_has_its_own_will(
    before: int, after: int
) -> None:
    # In a process of its own: what is frozen stays frozen.
    found = subprocess.run(
        [sys.executable, "-c", _LOOK.format(before=before)], check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == ["True", str(after), "7", "8"]
