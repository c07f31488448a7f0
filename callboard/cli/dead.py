"""`callboard dead`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.help import GroupedCommands
from callboard.cli.options import (
    Actors,
    Categories,
    JobId,
    Json,
    Limit,
    Since,
    Tags,
    Until,
    Yes,
    actor_names,
    confirm,
    past,
    session,
)

if TYPE_CHECKING:
    from callboard.operations import Operations
    from callboard.operations.letter_walk import WalkResult
    from callboard.operations.letters import LetterDetails, Letters, LetterSummary

app = typer.Typer(
    cls=GroupedCommands,
    help="Jobs that failed for good: look at them, run them again, throw them away.",
    no_args_is_help=True,
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="These letters.")]
Fingerprint = Annotated[
    str | None,
    typer.Option("--fingerprint", "-f", metavar="CAUSE", help="With this cause; see `dead list --by-cause`."),
]
Text = Annotated[str | None, typer.Option("--text", metavar="TEXT", help="With this in the error.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.", show_default=False)]


@app.command("list")
def list_letters(
    ctx: typer.Context,
    categories: Categories = None,
    actors: Actors = None,
    fingerprint: Fingerprint = None,
    tags: Tags = None,
    text: Text = None,
    since: Since = None,
    until: Until = None,
    by_cause: Annotated[
        bool, typer.Option("--by-cause", help="Count them by what they died of.", show_default=False)
    ] = False,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List dead letters, the newest jobs first. --since and --until go by the time of death."""
    from callboard.cli import output

    which = _letters(None, categories, actors, fingerprint, tags, text, since, until)
    with session(ctx).operations() as operations:
        if by_cause:
            _list_causes(operations, which, limit, json)
        else:
            _list(operations, which, limit, json)
        if not json:
            _warn_of_unindexed(operations)
    output.console()


def _list(operations: Operations, which: Letters, limit: int, json: bool) -> None:
    from callboard.cli import output
    from callboard.operations.moments import ago

    letters = operations.dead.search(which, limit=limit + 1)
    more, letters = len(letters) > limit, letters[:limit]
    if json:
        output.as_json({"letters": [letter_json(letter) for letter in letters], "more": more})
        return
    if not letters:
        output.say("No dead letters." if not which.as_json() else "No dead letter is like that.")
        return
    now = time.time()
    output.table(
        [
            output.Column("DIED"),
            output.Column("ACTOR", least=12),
            output.Column("ID", is_id=True),
            output.Column("TRIES", justify="right", rank=3),
            output.Column("CAUSE", rank=4),
            output.Column("ERROR", least=20, rank=2),
        ],
        [
            (
                ago(letter.died_at, now),
                letter.actor,
                letter.job_id,
                str(letter.attempts),
                letter.fingerprint,
                letter.error,
            )
            for letter in letters
        ],
    )
    if more:
        output.note("There are more: --limit, or --by-cause to count them.", style="dim")


def _list_causes(operations: Operations, which: Letters, limit: int, json: bool) -> None:
    from callboard.cli import output
    from callboard.operations.moments import ago

    causes = operations.dead.causes(which)[:limit]
    if json:
        output.as_json(
            {
                "causes": [
                    {
                        "fingerprint": cause.fingerprint,
                        "actor": cause.actor,
                        "error": cause.error,
                        "count": cause.count,
                        "first_at": output.timestamp(cause.first_at),
                        "last_at": output.timestamp(cause.last_at),
                    }
                    for cause in causes
                ]
            }
        )
        return
    if not causes:
        output.say("No dead letters." if not which.as_json() else "No dead letter is like that.")
        return
    now = time.time()
    output.table(
        [
            output.Column("LETTERS", justify="right"),
            output.Column("CAUSE"),
            output.Column("ACTOR", least=12),
            output.Column("FIRST", rank=3),
            output.Column("LAST", rank=2),
            output.Column("ERROR", least=24),
        ],
        [
            (
                f"{cause.count:,}",
                cause.fingerprint,
                cause.actor,
                ago(cause.first_at, now),
                ago(cause.last_at, now),
                cause.error,
            )
            for cause in causes
        ],
    )


def _warn_of_unindexed(operations: Operations) -> None:
    """Say so when the queues hold letters that the store doesn't know."""
    from callboard.cli import output
    from callboard.errors import BrokerUnavailable

    try:
        missing = operations.dead.unindexed()
    except BrokerUnavailable as error:
        output.note(f"The queues can't be asked whether this is all: {error}")
        return
    if missing:
        output.note(
            f"The queues hold {output.count(missing, 'letter')} more than the store knows: 'callboard dead reindex' "
            "reads them."
        )


@app.command()
def show(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Show a dead letter: its story, its payload (secrets masked), its traceback.

    One that the store doesn't know is looked for in the queues.
    """
    from callboard.cli import output

    with session(ctx).operations() as operations:
        details = operations.dead.show(operations.jobs.resolve(job_id))
    if json:
        output.as_json(_details_json(details))
    else:
        _print_details(details)


def _print_details(details: LetterDetails) -> None:
    from rich.text import Text as RichText

    from callboard.cli import output
    from callboard.operations.moments import ago, clock

    letter, now = details.summary, time.time()
    head = RichText.assemble(
        (output.printable(letter.actor), "bold"), "  ", letter.job_id, "  ", ("dead", "red")
    )
    output.console().print(head, soft_wrap=True)
    output.facts(
        [
            ("died", f"{clock(letter.died_at)}, {ago(letter.died_at, now)}"),
            ("because", letter.reason),
            ("error", letter.error if letter.error not in letter.reason else None),
            ("attempts", str(letter.attempts)),
            ("queued", None if details.enqueued_at is None else clock(details.enqueued_at)),
            ("queue", letter.queue),
            ("tags", ", ".join(letter.tags)),
            ("cause", letter.fingerprint),
            ("payload", details.payload),
        ]
    )
    if details.story:
        output.say()
        output.table(
            [output.Column("WHEN"), output.Column("STORY", least=20), output.Column("WORKER", rank=3)],
            [(clock(line.at), line.text, line.worker) for line in details.story],
        )
    if details.traceback:
        output.say()
        output.say(details.traceback.rstrip(), style="dim")
    if details.from_broker:
        output.note("The store doesn't know this letter: 'callboard dead reindex' reads it in.")


@app.command()
def replay(
    ctx: typer.Context,
    ids: Ids = None,
    everything: All = False,
    categories: Categories = None,
    actors: Actors = None,
    fingerprint: Fingerprint = None,
    tags: Tags = None,
    text: Text = None,
    since: Since = None,
    until: Until = None,
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload", "-p", help="Other arguments for one letter: JSON, @FILE or @-.", metavar="JSON"
        ),
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Run dead jobs again: by id, by cause, or all that fit. Each has all its attempts before it."""
    from callboard.cli.sending import _payload

    mended = _payload(payload) if payload is not None else None
    if mended is not None and len(ids or ()) != 1:
        raise typer.BadParameter("other arguments are for one letter: give its id", param_hint="'--payload'")
    with session(ctx).operations() as operations:
        which = _chosen(
            operations, ids, everything, categories, actors, fingerprint, tags, text, since, until
        )
        if not ids:
            confirm(f"Run {_how_many(operations, which)} again?", yes)
        from callboard.cli.output import Walking

        with Walking() as walking:
            result = operations.dead.replay(which, payload=mended, progress=walking.tell)
    _report(result, "replayed", "Queued again", json)


@app.command()
def discard(
    ctx: typer.Context,
    ids: Ids = None,
    everything: All = False,
    categories: Categories = None,
    actors: Actors = None,
    fingerprint: Fingerprint = None,
    tags: Tags = None,
    text: Text = None,
    since: Since = None,
    until: Until = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log.")] = "",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Throw dead letters away: by id, by cause, or all that fit. It is written into the audit log."""
    from callboard.cli.output import Walking

    with session(ctx).operations() as operations:
        which = _chosen(
            operations, ids, everything, categories, actors, fingerprint, tags, text, since, until
        )
        confirm(f"Throw {_how_many(operations, which)} away, for ever?", yes)
        with Walking() as walking:
            result = operations.dead.discard(which, reason=reason, progress=walking.tell)
    _report(result, "discarded", "Thrown away", json)


@app.command()
def reindex(ctx: typer.Context, categories: Categories = None, json: Json = False) -> None:
    """Read every dead letter into the store again, after that was lost or was behind."""
    from callboard.cli import output

    with session(ctx).operations() as operations, output.Walking() as walking:
        result = operations.dead.reindex(categories or (), progress=walking.tell)
    if json:
        output.as_json(_result_json(result, "indexed") | {"stale": result.stale})
        return
    output.say(f"Read {output.count(len(result.job_ids), 'dead letter')} into the store.")
    if result.merged:
        output.say(f"Merged {output.count(result.merged, 'copy', 'copies')}.")
    if result.stale:
        output.say(
            f"{output.count(result.stale, 'record')} said dead and had no letter any more: now discarded."
        )
    if result.unreadable:
        output.note(
            f"{output.count(result.unreadable, 'message')} could not be read, and went to quarantine."
        )


def _letters(
    ids: Iterable[str] | None,
    categories: list[str] | None,
    actors: list[str] | None,
    fingerprint: str | None,
    tags: list[str] | None,
    text: str | None,
    since: str | None,
    until: str | None,
) -> Letters:
    from callboard.operations.letters import Letters

    return Letters(
        ids=list(ids or ()),
        categories=categories or (),
        actors=actor_names(actors),
        fingerprint=fingerprint,
        tags=tags or (),
        text=text,
        since=past(since, "--since"),
        until=past(until, "--until"),
    )


def _chosen(
    operations: Operations,
    ids: list[str] | None,
    everything: bool,
    categories: list[str] | None,
    actors: list[str] | None,
    fingerprint: str | None,
    tags: list[str] | None,
    text: str | None,
    since: str | None,
    until: str | None,
) -> Letters:
    """What is to be changed. Nothing chosen is not everything: that has to be said."""
    which = _letters(
        [operations.jobs.resolve(given) for given in ids or ()],
        categories,
        actors,
        fingerprint,
        tags,
        text,
        since,
        until,
    )
    if everything == bool(which.as_json()):
        raise typer.BadParameter(
            "say which letters: their ids, a filter such as --fingerprint, or --all", param_hint="[ID]..."
        )
    return which


def _how_many(operations: Operations, which: Letters) -> str:
    """What is about to be changed, as far as the index can tell."""
    from callboard.cli.output import count
    from callboard.errors import StoreUnavailable

    try:
        known = len(operations.dead.search(which, limit=100_000))
    except StoreUnavailable:
        return f"the dead letters that fit ({which})"
    if not which.as_json():
        known = max(known, sum(operations.dead.counts().values()))
    return count(known, "dead letter")


def _report(result: WalkResult, word: str, sentence: str, json: bool) -> None:
    """Say what a walk did."""
    from callboard.cli import output
    from callboard.cli.exits import ExitCode

    if json:
        output.as_json(_result_json(result, word))
    else:
        if result.job_ids:
            output.say(f"{sentence}: {output.count(len(result.job_ids), 'job')}")
        if result.past_deadline:
            output.note(
                f"{output.count(result.past_deadline, 'job')} will end as expired: the deadline has passed."
            )
        if result.merged:
            output.note(f"Merged {output.count(result.merged, 'copy', 'copies')} on the way.", style="dim")
        if result.unreadable:
            output.note(
                f"{output.count(result.unreadable, 'message')} here can't be read: 'callboard dead reindex' "
                "moves them to quarantine."
            )
        if not result.recorded:
            output.note(
                "The store is away, so its records are behind: 'callboard dead reindex' puts them right."
            )
        for job_id, owner in result.key_taken.items():
            taken = f"job {owner} has its key now" if owner else "the store can't tell who has its key"
            output.note(f"Kept the dead letter {job_id}: {taken}.")
        for job_id in result.not_found:
            output.note(
                f"No queue has a dead letter {job_id}. If 'callboard dead list' shows one, "
                "'callboard dead reindex' puts the list right."
            )
        if not result.job_ids and not result.not_found and not result.key_taken:
            output.note("No dead letter is like that.")
    if result.not_found or not result.job_ids:
        raise typer.Exit(ExitCode.NOT_FOUND)


def _result_json(result: WalkResult, word: str) -> dict[str, Any]:
    return {
        word: result.job_ids,
        "not_found": result.not_found,
        "merged": result.merged,
        "unreadable": result.unreadable,
        "key_taken": result.key_taken,
        "past_deadline": result.past_deadline,
        "recorded": result.recorded,
    }


def letter_json(letter: LetterSummary) -> dict[str, Any]:
    """A dead letter for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp

    return {
        "id": letter.job_id,
        "actor": letter.actor,
        "category": letter.category,
        "queue": letter.queue,
        "died_at": timestamp(letter.died_at),
        "attempts": letter.attempts,
        "reason": letter.reason,
        "error": letter.error,
        "fingerprint": letter.fingerprint,
        "tags": list(letter.tags),
    }


def _details_json(details: LetterDetails) -> dict[str, Any]:
    from callboard.cli.jobs import payload_json
    from callboard.cli.output import timestamp

    return letter_json(details.summary) | {
        "enqueued_at": timestamp(details.enqueued_at),
        "payload": payload_json(details.payload),
        "traceback": details.traceback,
        "story": [
            {"at": timestamp(line.at), "attempt": line.attempt, "worker": line.worker, "text": line.text}
            for line in details.story
        ],
        "from_broker": details.from_broker,
    }
