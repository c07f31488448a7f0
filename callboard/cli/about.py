"""`callboard schemas`, `callboard settings` and `callboard audit`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.options import Json, Limit, session

if TYPE_CHECKING:
    from callboard.operations.declared import ActorSchema


def schemas(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="ACTOR", help="One actor, in full.")] = None,
    json: Json = False,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Keep what they accept in a file, at each release."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Name what jobs sent by that release wouldn't outlive, and exit with 4.",
        ),
    ] = None,
) -> None:
    """List the actors and what they accept; with an actor's name, its JSON schema."""
    from callboard.cli import output

    if (name is not None) + (write is not None) + (check is not None) > 1:
        raise typer.BadParameter("give one of ACTOR, --write and --check")
    with session(ctx).operations(messages=False) as operations:
        found = operations.schemas()
        if name is not None:
            wanted = operations.broker.find_actor(name).actor_name
            found = [schema for schema in found if schema.name == wanted]
    if write is not None:
        _write_release(write, found)
    elif check is not None:
        _check_release(check, found, json=json)
    elif json:
        output.as_json({"actors": [_schema_json(schema) for schema in found]})
    elif name is not None:
        _print_schema(found[0])
    elif not found:
        output.say("No actors are declared. They belong into actors/*.py.")
    else:
        _print_schemas(found)


def _write_release(path: Path, found: list[ActorSchema]) -> None:
    from callboard.cli import output
    from callboard.operations.compatibility import release_of

    path.write_bytes(release_of(found))
    output.say(f"{path} holds the payloads of {output.count(len(found), 'actor')}.")


def _check_release(path: Path, found: list[ActorSchema], *, json: bool) -> None:
    from callboard.cli import output
    from callboard.cli.exits import ExitCode
    from callboard.operations.compatibility import breaks, read_release

    try:
        release = read_release(path.read_bytes())
    except FileNotFoundError:
        raise typer.BadParameter(f"there is no {path}; callboard schemas --write {path} makes it") from None
    except ValueError as error:
        raise typer.BadParameter(f"{path} can't be compared with: {error}") from error
    changes = breaks(release, found)
    if json:
        output.as_json(
            {"breaks": [{"actor": b.actor, "change": b.change, "remedy": b.remedy} for b in changes]}
        )
    for change in changes if not json else ():
        output.say(f"{change.actor}: {change.change}.")
        output.say(f"    {change.remedy[0].upper()}{change.remedy[1:]}.")
    if not changes and not json:
        output.say(f"Jobs that were sent as in {path} can run.")
    if changes:
        raise typer.Exit(ExitCode.REFUSED)


def _print_schemas(found: list[ActorSchema]) -> None:
    from callboard.cli.output import Column, note, table

    table(
        [
            Column("ACTOR"),
            Column("QUEUE", rank=3),
            Column("RUNS", rank=4),
            Column("ARGUMENTS", least=20, rank=1),
            Column("WHAT IT DOES", least=24, rank=5),
        ],
        [
            (schema.name, schema.queue, schema.periodic or "", _arguments(schema), schema.summary)
            for schema in found
        ],
    )
    note("One in full: callboard schemas ACTOR", style="dim")


def _arguments(schema: ActorSchema) -> str:
    """What an actor takes, in a line: those that can be left out stand in brackets."""
    if schema.payload is None:
        return "anything"
    required = set(schema.payload.get("required", ()))
    names = [name if name in required else f"[{name}]" for name in schema.payload.get("properties", {})]
    return " ".join(names) or "none"


def _print_schema(schema: ActorSchema) -> None:
    import json

    from callboard.cli import output
    from callboard.operations.moments import span

    output.console().print(schema.name, style="bold")
    if schema.summary:
        output.say(schema.summary)
    output.say()
    output.facts(
        [
            ("queue", schema.queue),
            ("version", str(schema.version)),
            ("attempts", str(schema.attempts) if schema.attempts is not None else None),
            ("time limit", span(schema.time_limit) if schema.time_limit is not None else None),
            ("runs", schema.periodic),
        ]
    )
    output.say()
    if schema.payload is None:
        output.say("It is a stock Dramatiq actor, which checks no arguments.")
    else:
        output.console().print(json.dumps(schema.payload, ensure_ascii=False, indent=2), soft_wrap=True)


def _schema_json(schema: ActorSchema) -> dict[str, Any]:
    """An actor for programs. These fields are stable: see docs/reference/cli.md."""
    return {
        "name": schema.name,
        "category": schema.category,
        "queue": schema.queue,
        "priority": schema.priority,
        "version": schema.version,
        "attempts": schema.attempts,
        "time_limit": schema.time_limit,
        "periodic": schema.periodic,
        "summary": schema.summary,
        "payload": schema.payload,
    }


def settings(ctx: typer.Context, json: Json = False) -> None:
    """Show every setting and where its value comes from; secrets are masked."""
    from callboard.cli import output
    from callboard.operations.configuration import COMMAND_VARIABLES, settings_report, strays

    _load_what_can_be(ctx)
    report = settings_report(os.environ)
    lost = strays(os.environ, [setting.variable for setting in report])
    if json:
        output.as_json(
            {
                "settings": [
                    {
                        "variable": setting.variable,
                        "value": setting.value,
                        "source": setting.source,
                        "default": setting.default,
                        "belongs_to": setting.belongs_to,
                        "description": setting.description,
                    }
                    for setting in report
                ],
                "unknown": [{"variable": stray.variable, "nearest": stray.nearest} for stray in lost],
            }
        )
        return
    output.table(
        [
            output.Column("SETTING"),
            output.Column("VALUE", least=14),
            output.Column("FROM", rank=1),
            output.Column("MEANING", least=30, rank=2),
        ],
        [
            (setting.variable, _value(setting.value), setting.source, setting.description)
            for setting in report
        ],
    )
    for stray in lost:
        hint = f"; did you mean {stray.nearest}?" if stray.nearest else ""
        output.note(f"{stray.variable} is set, and nothing reads it{hint}")
    for variable in COMMAND_VARIABLES:
        if variable in os.environ:
            output.note(f"{variable}={os.environ[variable]}: {COMMAND_VARIABLES[variable]}", style="dim")


def _value(value: Any) -> str:
    import json

    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _load_what_can_be(ctx: typer.Context) -> None:
    """Import the application, for the settings of its services. Where it can't be, the core ones are shown:
    settings are what one looks at then."""
    from callboard.app import load_app
    from callboard.cli import output
    from callboard.errors import CallboardError

    try:
        load_app(session(ctx).module)
    except CallboardError as error:
        output.note(f"The application can't be loaded, so its services' settings may be missing: {error}")


def audit(ctx: typer.Context, limit: Limit = 50, json: Json = False) -> None:
    """Show who did what: purges, discards, replays, cancellations, pauses."""
    from callboard.cli import output
    from callboard.operations.moments import ago

    with session(ctx).operations() as operations:
        entries = operations.audit_log(limit=limit)
    if json:
        output.as_json(
            {
                "entries": [
                    {
                        "at": output.timestamp(entry.at),
                        "who": entry.actor,
                        "action": entry.action,
                        "target": entry.target,
                        "count": entry.count,
                        "details": dict(entry.details),
                    }
                    for entry in entries
                ]
            }
        )
        return
    if not entries:
        output.say("Nothing has been done yet.")
        return
    now = time.time()
    output.table(
        [
            output.Column("WHEN"),
            output.Column("WHO", least=8, rank=3),
            output.Column("ACTION"),
            output.Column("COUNT", justify="right"),
            output.Column("WHAT", least=24),
        ],
        [
            (
                ago(entry.at, now),
                entry.actor,
                f"{entry.action} (begun)" if entry.details.get("step") == "begun" else entry.action,
                "" if entry.details.get("step") == "begun" else f"{entry.count:,}",
                entry.target,
            )
            for entry in entries
        ],
    )
