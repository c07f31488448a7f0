"""`callboard enqueue`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.options import Json, PriorityName, length, moment, session, typed

if TYPE_CHECKING:
    from dramatiq import Message

    from callboard.brokers.base import Broker


class KeyEnd(StrEnum):
    """What ends the key of a unique job, as it is typed."""

    STARTED = "started"
    ENDED = "ended"


def enqueue(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The actor: send-email, or send_email.")],
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload",
            "-p",
            help="Its arguments: a JSON object, @FILE, or @- for standard input.",
            metavar="JSON",
        ),
    ] = None,
    priority: Annotated[
        PriorityName | None,
        typer.Option(
            "--priority",
            "-P",
            metavar="PRIORITY",
            help="Instead of the actor's own: critical, high, medium, low.",
        ),
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", "-d", help="Start after: 90s, 10m, 2h, 1d.", metavar="TIME")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="Start at: 2025-12-24T18:00+01:00, 18:00 (local time).", metavar="MOMENT"),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="Don't start later than: 10m from now, or a moment."),
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option("--unique", help="Queue nothing while another job has this key.", metavar="KEY"),
    ] = None,
    unique_for: Annotated[
        str | None,
        typer.Option(
            "--unique-for",
            metavar="TIME",
            help="The key lasts so long from now, whether the job has ended or not: 1h, 1d.",
        ),
    ] = None,
    unique_until: Annotated[
        KeyEnd,
        typer.Option(
            "--unique-until", metavar="STATE", help="The key lasts until the job has started, or ended."
        ),
    ] = KeyEnd.ENDED,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="WORD", help="A word to find it by. May be given again."),
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Its id, instead of a new one.")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option("--category", "-c", metavar="NAME", help="Of an actor that isn't declared here."),
    ] = None,
    payload_version: Annotated[
        int,
        typer.Option(
            "--payload-version",
            metavar="N",
            min=1,
            help="Of the payload of an actor that isn't declared here.",
        ),
    ] = 1,
    json: Json = False,
) -> None:
    """Queue a job. When this returns, the job is safe; it prints the job's id."""
    from callboard.client import Client
    from callboard.queues import Priority

    arguments = _payload(payload)
    deadline = _expires(expires)
    with session(ctx).broker() as broker:
        if job_id is not None:
            _refuse_known(broker, job_id)
        try:
            message = Client(broker).send(
                name,
                arguments,
                category=category,
                payload_version=payload_version,
                priority=Priority[priority.name] if priority is not None else None,
                delay=length(delay, "--delay"),
                at=moment(at, "--at"),
                expires=deadline,
                unique=unique,
                unique_for=length(unique_for, "--unique-for"),
                unique_until=unique_until.value,
                tags=tags or (),
                job_id=job_id,
            )
        except ValueError as error:
            if type(error) is ValueError:  # what contradicts itself; our own errors are subclasses
                raise typer.BadParameter(str(error)) from error
            raise
    _tell(broker, message, key=unique, lasts=unique_for is not None, as_json=json)


def _tell(broker: Broker, message: Message[Any], *, key: str | None, lasts: bool, as_json: bool) -> None:
    """Print what became of a send."""
    from callboard.cli import output

    recorder = broker.recorder
    if recorder is not None and (recorder.pending or recorder.dropped):
        output.note("The store is away, so nothing is recorded of this job; it is safe all the same.")
    other = (message.options.get("callboard") or {}).get("duplicate_of")
    if other is not None:
        why = ", which lasts for a time" if lasts else " and hasn't ended"
        output.note(f"not queued: job {other} has the key '{key}'{why}")
    if as_json:
        document = {"id": message.message_id, "actor": message.actor_name, "queue": message.queue_name}
        output.as_json({**document, "queued": other is None})
    elif other is not None:
        output.say(other)
    elif output.console().is_terminal:
        output.say(f"Queued {message.actor_name} in {message.queue_name}: {message.message_id}")
        output.note(f"Follow it: callboard jobs watch {message.message_id}", style="dim")
    else:
        output.say(message.message_id)


def _refuse_known(broker: Broker, job_id: str) -> None:
    """Queue no second job under the id of a first: its story would be written over."""
    from callboard.errors import NotPossible, StoreUnavailable

    try:
        record = broker.store.get(job_id) if broker.store is not None else None
    except StoreUnavailable:  # a send goes on without the store
        return
    if record is not None:
        raise NotPossible(
            f"not queued: there is a job {job_id} already, which is {record.state}; "
            "give another --id, or leave it out"
        )


def _payload(text: str | None) -> dict[str, Any]:
    """The arguments of a job, from the command line, a file or standard input."""
    import json
    import sys
    from pathlib import Path

    hint = "'--payload' / '-p'"
    if text is None:
        return {}
    if text == "@-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise typer.BadParameter(f"can't read {text[1:]}: {reason}", param_hint=hint) from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"""this is no JSON: {error}; write --payload '{{"to": "ada@example.org"}}'""", param_hint=hint
        ) from error
    if not isinstance(value, dict):
        raise typer.BadParameter(
            "the arguments are a JSON object with their names, not a list or a single value", param_hint=hint
        )
    return value


def _expires(text: str | None) -> Any:
    """A deadline: a length of time from now, or a moment."""
    from callboard.operations.moments import parse_moment, parse_span

    if text is None:
        return None
    try:
        return parse_span(text)
    except ValueError:
        return typed(parse_moment, text, "--expires")
