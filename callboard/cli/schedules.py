"""`callboard schedules`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.help import GroupedCommands
from callboard.cli.options import Json, session

if TYPE_CHECKING:
    from datetime import datetime

    from callboard.operations.schedules import ScheduleStatus
    from callboard.store.base import Tick

app = typer.Typer(
    cls=GroupedCommands,
    help="See when jobs start by themselves, and what became of that; pause, resume and run them.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule: its actor's name.")]


@app.command("list")
def list_schedules(ctx: typer.Context, json: Json = False) -> None:
    """List schedules: what each means, when it is due next, and what became of its last tick."""
    from rich.text import Text

    from callboard.cli import output
    from callboard.operations.moments import ago

    with session(ctx).operations() as operations:
        found = operations.schedules.search()
    if json:
        output.as_json({"schedules": [_schedule_json(status) for status in found]})
        return
    if not found:
        output.say("No actor has a schedule: @actor(periodic=cron(...)).")
        return
    now = time.time()

    def last(status: ScheduleStatus) -> str:
        return "".join(f"{tick.fate}, {ago(tick.due, now)}" for tick in status.ticks[:1])

    output.table(
        [
            output.Column("SCHEDULE"),
            output.Column("WHEN", least=20, rank=2),
            output.Column("NEXT", rank=1),
            output.Column("LAST", least=12, rank=3),
            output.Column(""),
        ],
        [
            (
                status.name,
                status.text,
                _date(status.dates[0]),
                last(status),
                Text("paused", style="yellow") if status.paused else Text(""),
            )
            for status in found
        ],
    )
    output.note("One in full: callboard schedules show NAME", style="dim")


@app.command("show")
def show_schedule(
    ctx: typer.Context,
    name: Name,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=500, help="Show so many past ticks.")
    ] = 20,
    json: Json = False,
) -> None:
    """Show a schedule: its next five dates, and what became of its ticks."""
    from callboard.cli import output
    from callboard.operations.moments import ago, clock

    with session(ctx).operations() as operations:
        status = operations.schedules.show(name, limit=limit)
    if json:
        output.as_json(_schedule_json(status) | {"ticks": [_tick_json(tick) for tick in status.ticks]})
        return
    now, state, cron = time.time(), status.state, status.cron
    paused = None
    if state.paused_at is not None:
        paused = f"{ago(state.paused_at, now)}, by {state.paused_by or 'somebody'}"
    output.facts(
        [
            ("schedule", status.name),
            ("when", status.text),
            ("expression", cron.expression),
            ("zone", cron.tz),
            ("misfire", cron.misfire),
            ("overlap", cron.overlap),
            ("paused", paused),
            ("next", "\n".join(_date(date) for date in status.dates)),
        ]
    )
    output.say()
    if not status.ticks:
        output.say("None of its ticks has come yet, or no scheduler has served it: callboard scheduler")
        return
    output.table(
        [
            output.Column("DUE"),
            output.Column("TICKS", justify="right", rank=3),
            output.Column("FATE"),
            output.Column("LATE", rank=4),
            output.Column("JOB", is_id=True, rank=2),
            output.Column("WHY", least=20, rank=1),
        ],
        [
            (clock(tick.due), f"{tick.count:,}", tick.fate, _late(tick), tick.job_id, tick.reason)
            for tick in status.ticks
        ],
    )


def _late(tick: Tick) -> str:
    from callboard.operations.moments import span

    return span(tick.at - tick.due) if tick.job_id and tick.at - tick.due >= 1 else ""


@app.command()
def pause(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Skip a schedule's ticks until it is resumed. Each is written down as skipped."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        paused = operations.schedules.pause(name)
    output.answer(
        {"paused": paused},
        f"Paused: {paused}. To have it run all the same: callboard schedules run {paused}",
        json=json,
    )


@app.command()
def resume(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Undo a pause. What was skipped meanwhile isn't made up for."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        resumed = operations.schedules.resume(name)
    output.answer({"resumed": resumed}, f"Resumed: {resumed}", json=json)


@app.command()
def run(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Send a schedule's job now, whether it is paused or not. Prints the job's id."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        job_id = operations.schedules.run(name)
    output.answer({"id": job_id}, job_id, json=json)


def _date(date: datetime) -> str:
    return date.strftime("%a %Y-%m-%d %H:%M %Z")


def _schedule_json(status: ScheduleStatus) -> dict[str, Any]:
    """A schedule for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp

    state, cron = status.state, status.cron
    age = cron.misfire_age
    return {
        "name": status.name,
        "expression": cron.expression,
        "zone": cron.tz,
        "text": status.text,
        "misfire": cron.misfire,
        "misfire_age": None if age is None else age.total_seconds(),
        "misfire_limit": cron.misfire_limit,
        "overlap": cron.overlap,
        "paused_at": timestamp(state.paused_at),
        "paused_by": state.paused_by or None,
        "served_until": timestamp(state.until),
        "next": [date.isoformat() for date in status.dates],
        "last": _tick_json(status.ticks[0]) if status.ticks else None,
    }


def _tick_json(tick: Tick) -> dict[str, Any]:
    """What became of a tick, for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp

    return {
        "due": timestamp(tick.due),
        "first": timestamp(tick.first if tick.first is not None else tick.due),
        "count": tick.count,
        "fate": str(tick.fate),
        "at": timestamp(tick.at),
        "by": tick.by,
        "id": tick.job_id or None,
        "reason": tick.reason,
    }
