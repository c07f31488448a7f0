"""Options and arguments that several commands take, and the times that people type."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from callboard.cli.session import Session

T = TypeVar("T")


class PriorityName(StrEnum):
    """The priorities, as they are typed."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", show_default=False)]
JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id, or six or more characters of its start or end.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.", show_default=False)]
Limit = Annotated[
    int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="Show so many at most.")
]
Categories = Annotated[
    list[str] | None,
    typer.Option("--category", "-c", metavar="NAME", help="Of this category. May be given again."),
]
Actors = Annotated[
    list[str] | None, typer.Option("--actor", "-a", metavar="NAME", help="Of this actor. May be given again.")
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", "-t", metavar="WORD", help="With this tag. May be given again.")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="Not older than: 2h, 3d, or a moment such as 2025-12-24T18:00."
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Older than: 2h, 3d, or a moment.")
]


def session(ctx: typer.Context) -> Session:
    """The global options."""
    found = ctx.find_object(Session)
    return found if found is not None else Session()


def past(text: str | None, option: str) -> float | None:
    """A moment in the past that a person typed: how long ago, or when."""
    if text is None:
        return None
    from callboard.operations.moments import parse_moment, parse_span

    try:
        return (datetime.now(UTC) - parse_span(text)).timestamp()
    except ValueError:
        return typed(parse_moment, text, option).timestamp()


def length(text: str | None, option: str) -> timedelta | None:
    """A length of time that a person typed."""
    from callboard.operations.moments import parse_span

    return None if text is None else typed(parse_span, text, option)


def moment(text: str | None, option: str) -> datetime | None:
    """A moment that a person typed."""
    from callboard.operations.moments import parse_moment

    return None if text is None else typed(parse_moment, text, option)


def typed(parse: Callable[[str], T], text: str, option: str) -> T:
    """What a text means; what it doesn't is a misspelt command."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from error


def actor_names(given: list[str] | None) -> list[str]:
    """Actors as they are named in records, however they were typed. Stock ones keep their `_`."""
    return sorted({spelling for name in given or () for spelling in (name, name.replace("_", "-"))})


def confirm(question: str, yes: bool) -> None:
    """Ask before something is thrown away.

    Raises:
        typer.Exit: The answer was no.
    """
    import sys

    from callboard.cli.exits import ExitCode

    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask; pass --yes", param_hint="'--yes'")
    if not typer.confirm(question, default=False, err=True):
        typer.echo("Nothing was done.", err=True)
        raise typer.Exit(ExitCode.REFUSED)
