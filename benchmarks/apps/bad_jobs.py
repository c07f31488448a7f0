"""Jobs that do their worst, each in a way of its own, on the `broker` of the application that imports this."""

from __future__ import annotations

import ctypes
import os
import time
from datetime import timedelta

from broker import actor
from callboard import Isolation, current_job

#: How long those may run that never end.
LIMIT = timedelta(seconds=3)
#: What `flood_the_log` writes.
LINES = 5_000


@actor(category="jobs", retries=0)
def die() -> None:
    """Take the worker's process down."""
    os._exit(9)


@actor(category="jobs", retries=0, isolated=True, time_limit=LIMIT)
def hang() -> None:
    """Never end."""
    time.sleep(3_600)


@actor(category="jobs", retries=0)
def hold_the_gil() -> None:
    """Let no other thread of the process run, for two seconds."""
    ctypes.PyDLL(None).usleep(2_000_000)


@actor(category="jobs", retries=0, isolated=True, time_limit=LIMIT)
def hold_the_gil_for_ever() -> None:
    """Let no other thread of the process run."""
    ctypes.PyDLL(None).sleep(3_600)


@actor(category="jobs", retries=0, isolated=Isolation(memory="300MiB"))
def eat_memory() -> None:
    """Grow, in about a second, to more than it may."""
    eaten = []
    while True:
        eaten.append(bytearray(16 * 1024 * 1024))
        time.sleep(0.01)


@actor(category="jobs", retries=0)
def flood_the_log() -> None:
    """Write many lines."""
    for number in range(LINES):
        current_job().log.warning("a line", number=number)
