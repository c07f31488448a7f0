"""`callboard quarantine`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.help import GroupedCommands
from callboard.cli.options import Json, Limit, Yes, confirm, session

if TYPE_CHECKING:
    from callboard.operations.quarantine import Suspect

app = typer.Typer(
    cls=GroupedCommands,
    help="Messages that can't be read or trusted: look at them, throw them away, vouch for them.",
    no_args_is_help=True,
)

MessageId = Annotated[str, typer.Argument(metavar="ID", help="See `quarantine list`.")]


@app.command("list")
def list_quarantine(ctx: typer.Context, limit: Limit = 50, json: Json = False) -> None:
    """List what lies in quarantine, and why."""
    from callboard.cli import output
    from callboard.operations.moments import ago

    with session(ctx).operations() as operations:
        suspects = operations.quarantine.search(limit=limit)
    if json:
        output.as_json({"messages": [_suspect_json(suspect) for suspect in suspects]})
        return
    if not suspects:
        output.say("The quarantine is empty.")
        return
    now = time.time()
    output.table(
        [
            output.Column("ID"),
            output.Column("SINCE", rank=2),
            output.Column("FROM", rank=3),
            output.Column("SIZE", justify="right", rank=4),
            output.Column("COPIES", justify="right", rank=5),
            output.Column("REASON", least=24),
        ],
        [(s.id, ago(s.since, now), s.queue or "?", f"{s.size:,}", str(s.copies), s.reason) for s in suspects],
    )


@app.command("show")
def show_quarantine(
    ctx: typer.Context,
    message_id: MessageId,
    json: Json = False,
) -> None:
    """Show a message: its options and its body's beginning, secrets masked."""
    from callboard.cli import output
    from callboard.operations.moments import ago, clock

    with session(ctx).operations() as operations:
        suspect = operations.quarantine.show(message_id)
    if json:
        output.as_json(_suspect_json(suspect))
        return
    now = time.time()
    since = None if suspect.since is None else f"{clock(suspect.since)}, {ago(suspect.since, now)}"
    output.facts(
        [
            ("id", suspect.id),
            ("since", since),
            ("from", suspect.queue or "unknown"),
            ("reason", suspect.reason),
            ("size", f"{suspect.size:,} bytes"),
            ("copies", str(suspect.copies) if suspect.copies > 1 else None),
            ("starts jobs by", ", ".join(suspect.starts)),
            ("options", suspect.options),
            ("body", suspect.body),
        ]
    )


@app.command("discard")
def discard_quarantine(
    ctx: typer.Context,
    message_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="These messages.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.", show_default=False)] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Throw messages away. It is written into the audit log."""
    from callboard.cli import output
    from callboard.cli.exits import ExitCode
    from callboard.queues import QUARANTINE

    if everything == bool(message_ids):
        raise typer.BadParameter("say which messages, or --all", param_hint="[ID]...")
    what = "everything in quarantine" if everything else output.count(len(message_ids or ()), "message")
    confirm(f"Throw {what} away, for ever?", yes)
    with session(ctx).operations() as operations, output.Walking() as walking:
        result = operations.quarantine.discard(
            None if everything else message_ids, progress=walking.over(QUARANTINE)
        )
    if json:
        output.as_json({"discarded": result.ids, "count": result.count, "not_found": result.not_found})
    else:
        output.say(f"Thrown away: {output.count(result.count, 'message')}")
        for message_id in result.not_found:
            output.note(f"There is no message {message_id} in quarantine.")
    if result.not_found or not result.count:
        raise typer.Exit(ExitCode.NOT_FOUND)


@app.command("replay")
def replay_quarantine(
    ctx: typer.Context,
    message_id: MessageId,
    with_options: Annotated[
        bool,
        typer.Option(
            "--with-options", help="Vouch for options that make other jobs run, too.", show_default=False
        ),
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Vouch for a message: sign it anew and send it to the queue it came from."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        suspect = operations.quarantine.show(message_id)
        confirm(f"Trust this message ({suspect.reason}), and send it to {suspect.queue}?", yes)
        job_id = operations.quarantine.replay(message_id, with_options=with_options)
    output.answer({"id": job_id}, f"Queued: {job_id}", json=json)


def _suspect_json(suspect: Suspect) -> dict[str, Any]:
    """A message in quarantine for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp

    return {
        "id": suspect.id,
        "from": suspect.queue,
        "reason": suspect.reason,
        "since": timestamp(suspect.since),
        "size": suspect.size,
        "copies": suspect.copies,
        "options": suspect.options,
        "starts": list(suspect.starts),
        "body": suspect.body,
    }
