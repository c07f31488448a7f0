"""What happens to the storage at fixed times."""

from __future__ import annotations

from actors.storage import clean_generated_files
from broker import actor
from callboard import Priority, cron


@actor(priority=Priority.LOW, periodic=cron("0 3 * * *", tz="Europe/Paris"))
def clean_generated_files_daily() -> None:
    """Ask for the cleaning, each night at three in Paris.

    Safe to run twice: while one cleaning waits or runs, no second one is queued.
    """
    clean_generated_files.using(unique="generated/").send(prefix="generated/")
