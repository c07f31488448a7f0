"""Keeping the storage tidy."""

from __future__ import annotations

from datetime import timedelta

from broker import actor
from callboard import Priority, current_job
from services import cleaner


@actor(priority=Priority.LOW, retries=2, time_limit=timedelta(hours=1))
def clean_generated_files(prefix: str = "generated/", older_than: timedelta = timedelta(hours=24)) -> None:
    """Delete what lies under a prefix and is older than a day.

    Safe to run twice: what is gone stays gone.
    """
    job = current_job()

    def progress(deleted: int) -> None:
        job.stop_if_cancelled()
        job.progress(note=f"{deleted:,} files deleted")

    cleaner.clean(prefix, older_than, progress=progress)
