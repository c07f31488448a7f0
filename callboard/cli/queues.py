"""`callboard queues`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.help import GroupedCommands
from callboard.cli.options import Json, Yes, confirm, session

if TYPE_CHECKING:
    from callboard.operations import QueueStatus

app = typer.Typer(
    cls=GroupedCommands, help="See how full queues are; pause, resume and purge them.", no_args_is_help=True
)

Pattern = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue, or a pattern such as 'email.*'.")]


@app.command("list")
def list_queues(
    ctx: typer.Context,
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Only those that fit, such as 'email.*'.")
    ] = "*",
    everything: Annotated[bool, typer.Option("--all", help="Empty ones, too.", show_default=False)] = False,
    json: Json = False,
) -> None:
    """List queues: what waits, what runs, what is delayed, how many workers consume them."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        found = operations.queues.search(pattern)
    if json:
        output.as_json({"queues": [_queue_json(status) for status in found]})
        return
    shown = [
        s for s in found if everything or pattern != "*" or s.paused or s.ready or s.claimed or s.delayed
    ]
    if not shown:
        output.say(_nothing_shown(found))
    else:
        _print_queues(shown)
    if len(shown) < len(found):
        hidden = output.count(len(found) - len(shown), "empty queue")
        output.note(f"{hidden} not shown: --all", style="dim")


def _nothing_shown(found: list[Any]) -> str:
    if not found:
        return "There are no such queues."
    if any(status.delayed is None for status in found):
        return (
            "No queue has a job that is ready. How many are claimed or delayed this broker can't tell; "
            "they are in: callboard jobs list"
        )
    return "No queue has anything in it."


def _print_queues(shown: list[QueueStatus]) -> None:
    from rich.text import Text

    from callboard.cli.output import Column, note, table

    def number(value: int | None) -> str:
        return "?" if value is None else f"{value:,}" if value else "-"

    rows = []
    for status in shown:
        remark = Text("")
        if status.paused:
            remark = Text("paused", style="yellow")
        elif status.kind == "jobs" and not status.consumers and (status.ready or status.delayed):
            remark = Text("no worker", style="red")
        elif status.kind != "jobs" and status.ready:
            command = "dead list" if status.kind == "dead" else "quarantine list"
            remark = Text(f"callboard {command}", style="dim")
        rows.append(
            (
                status.name,
                number(status.ready),
                number(status.claimed),
                number(status.delayed),
                number(status.consumers) if status.kind == "jobs" else "",
                remark,
            )
        )
    table(
        [
            Column("QUEUE", least=16),
            Column("READY", justify="right"),
            Column("CLAIMED", justify="right"),
            Column("DELAYED", justify="right", rank=2),
            Column("WORKERS", justify="right", rank=1),
            Column(""),
        ],
        rows,
    )
    if any(status.claimed is None or status.delayed is None for status in shown):
        note("?: this broker can't tell.", style="dim")


def _queue_json(status: QueueStatus) -> dict[str, Any]:
    """A queue for programs. These fields are stable: see docs/reference/cli.md."""
    return {
        "name": status.name,
        "kind": status.kind,
        "category": status.category,
        "priority": status.priority,
        "ready": status.ready,
        "claimed": status.claimed,
        "delayed": status.delayed,
        "consumers": status.consumers,
        "paused": status.paused,
    }


@app.command("create")
def create_queues(ctx: typer.Context, json: Json = False) -> None:
    """Create all queues before they are first used, for users of RabbitMQ who may send and not create."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        names = operations.queues.create()
    if json:
        output.as_json({"created": names})
    elif names:
        output.say(f"There now: {output.count(len(names), 'queue')}, and those that delays need.")
    else:
        output.say("Nothing to do: this broker's queues come into being with their first job.")


@app.command()
def pause(ctx: typer.Context, queue: Pattern, json: Json = False) -> None:
    """Have workers claim nothing more from a queue; what runs goes on. Jobs can still be sent to it."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        names = operations.queues.pause(queue)
    output.answer({"paused": names}, f"Paused: {', '.join(names)}. Workers know within a second.", json=json)


@app.command()
def resume(ctx: typer.Context, queue: Pattern, json: Json = False) -> None:
    """Undo a pause."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        names = operations.queues.resume(queue)
    output.answer({"resumed": names}, f"Resumed: {', '.join(names)}", json=json)


@app.command()
def purge(
    ctx: typer.Context,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="One queue of jobs.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Throw away all jobs that wait in a queue. It is written into the audit log."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        status = next((s for s in operations.queues.search(queue) if s.name == queue), None)
        if status is not None and status.kind == "jobs":
            waiting = output.count(status.ready + (status.delayed or 0), "waiting job")
            confirm(f"Throw {waiting} in {queue} away, for ever?", yes)
        with output.Walking() as walking:
            result = operations.queues.purge(queue, progress=walking.over(queue))
    if json:
        output.as_json({"queue": queue, "purged": result.count, "recorded": result.recorded})
        return
    output.say(f"Thrown away: {output.count(result.count, 'job')} of {queue}")
    if not result.recorded:
        output.note("The store is away, so their records don't say so.")
