"""Telling whoever sends on an event loop that this holds up the loop."""

from __future__ import annotations

import asyncio
import sys
import warnings

from callboard.errors import CallboardWarning

_OURS = ("callboard", "dramatiq")
_MESSAGE = (
    "a job was sent on a running event loop, which stands still until the broker has confirmed it: "
    "await send_async() or send_many_async() instead"
)


def warn_if_running() -> None:
    """Warn, once for each line of the application, if an event loop runs in this thread."""
    if asyncio._get_running_loop() is not None:
        warnings.warn(_MESSAGE, CallboardWarning, stacklevel=_depth_of_application())


def _depth_of_application() -> int:
    """How far up the stack the application's own line is, counted as `warnings` counts."""
    frame = sys._getframe(1)
    depth = 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in _OURS and frame.f_back is not None:
        frame = frame.f_back
        depth += 1
    return depth
