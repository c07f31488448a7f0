"""How long the tests wait for what has to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0  # seconds that an event may take on a slow machine; none should need them


def until(holds: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until something is so, and return it."""
    end = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
    return found
