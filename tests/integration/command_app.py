"""A job that a test holds up and lets go, for workers in processes of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from broker import actor
from callboard import current_job

FOLDER = Path(os.environ.get("COMMANDS_FOLDER", "."))


def note(*words: object) -> None:
    """Append a line in one write: it stays if the process is killed the moment after."""
    descriptor = os.open(FOLDER / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


@actor(category="trial")
def hold() -> None:
    """Run until the test lets go. Safe to run twice: it only takes notes."""
    job = current_job()
    note("start", job.id, os.getpid(), job.attempt)
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    note("end", job.id, os.getpid(), job.attempt)
