"""Files made from data."""

from __future__ import annotations

from datetime import timedelta

from broker import actor
from callboard import current_job
from services import exporter

Value = str | int | float | bool | None


@actor(retries=3, time_limit=timedelta(hours=1))
def export_csv(
    query: str,
    destination: str,
    parameters: dict[str, Value] | None = None,
    sort: str | None = None,
    descending: bool = False,
) -> None:
    """Write the rows of a named query to a storage key.

    Safe to run twice: the file appears whole, and takes the place of the one before.
    """
    job = current_job()

    def progress(rows: int) -> None:
        job.stop_if_cancelled()
        job.progress(note=f"{rows:,} rows")

    exporter.export_csv(
        query, parameters or {}, destination, sort=sort, descending=descending, progress=progress
    )
