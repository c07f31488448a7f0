"""Schedules, and what became of their ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from callboard.store.base import ScheduleState, Tick

if TYPE_CHECKING:
    import sqlite3

_COLUMNS = "name, spec, until, paused_at, paused_by"


def begin(connection: sqlite3.Connection, name: str, spec: str, until: float) -> None:
    """From when a schedule's ticks count."""
    connection.execute(
        "INSERT INTO schedules (name, spec, until) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, until = excluded.until",
        (name, spec, until),
    )


def pause(connection: sqlite3.Connection, name: str, at: float | None, by: str) -> None:
    """Whether a schedule is paused, and since when, by whom."""
    connection.execute(
        "INSERT INTO schedules (name, paused_at, paused_by) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by",
        (name, at, by),
    )


def read(connection: sqlite3.Connection) -> dict[str, ScheduleState]:
    """All schedules, by name."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM schedules ORDER BY name")  # noqa: S608  our own columns
    return {row[0]: ScheduleState(*row) for row in found}


def add_tick(connection: sqlite3.Connection, tick: Tick, kept: int, until: float | None) -> bool:
    """Append what became of a tick, unless that is known."""
    added = connection.execute(
        "INSERT OR IGNORE INTO ticks VALUES (?, ?, ?)",
        (tick.schedule, tick.due, msgspec.json.encode(tick).decode()),
    ).rowcount
    connection.execute(
        "DELETE FROM ticks WHERE schedule = ?1 AND due <"
        " (SELECT due FROM ticks WHERE schedule = ?1 ORDER BY due DESC LIMIT 1 OFFSET ?2)",
        (tick.schedule, kept - 1),
    )
    if until is not None:
        connection.execute(
            "UPDATE schedules SET until = max(coalesce(until, ?1), ?1) WHERE name = ?2",
            (until, tick.schedule),
        )
    return added > 0


def ticks(connection: sqlite3.Connection, schedule: str, limit: int) -> list[Tick]:
    """The newest ticks of a schedule."""
    found = connection.execute(
        "SELECT data FROM ticks WHERE schedule = ? ORDER BY due DESC LIMIT ?", (schedule, limit)
    )
    return [msgspec.json.decode(data, type=Tick) for (data,) in found]
