"""`callboard jobs` and `callboard why`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
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
    actor_names,
    past,
    session,
)
from callboard.states import State

if TYPE_CHECKING:
    from rich.text import Text

    from callboard.errors import CallboardError
    from callboard.operations import Operations
    from callboard.store.base import Event, Record

app = typer.Typer(
    cls=GroupedCommands, help="Find jobs, look at them, cancel them, run them again.", no_args_is_help=True
)


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    states: Annotated[
        list[State] | None,
        typer.Option(
            "--state", "-s", metavar="STATE", help=f"In this state: {', '.join(State)}. May be given again."
        ),
    ] = None,
    categories: Categories = None,
    actors: Actors = None,
    queues: Annotated[
        list[str] | None,
        typer.Option("--queue", "-q", metavar="QUEUE", help="Of this queue. May be given again."),
    ] = None,
    tags: Tags = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="With this in the payload, the error or the reason."),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    after: Annotated[
        str | None, typer.Option("--after", help="Go on where an earlier page ended.", metavar="NEXT")
    ] = None,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    from callboard.cli import output
    from callboard.store.base import Query

    query = Query(
        states=states or (),
        categories=categories or (),
        actors=actor_names(actors),
        queues=queues or (),
        tags=tags or (),
        text=text,
        since=past(since, "--since"),
        until=past(until, "--until"),
        limit=limit,
        after=after,
    )
    with session(ctx).operations() as operations:
        page = operations.jobs.search(query)
        while not page.records and page.next is not None:  # a long search, that has found nothing yet
            query.after = page.next
            page = operations.jobs.search(query)
        cancelled = operations.jobs.cancellations() if page.records and not json else {}
    if json:
        output.as_json({"jobs": [job_json(record) for record in page.records], "next": page.next})
        return
    if not page.records:
        output.say("No jobs.")
        return
    _print_jobs(page.records, cancelled)
    if page.next is not None:
        output.note(f"There are more: --limit, or --after {page.next}", style="dim")


def _print_jobs(records: list[Record], cancelled: Collection[str]) -> None:
    from callboard.cli.output import Column, state, table
    from callboard.operations.moments import ago

    now = time.time()
    table(
        [
            Column("STATE"),
            Column("ACTOR", least=12),
            Column("ID", is_id=True),
            Column("QUEUED", rank=2),
            Column("TRIES", justify="right", rank=4),
            Column("QUEUE", rank=5),
            Column("NOTE", least=16, rank=3),
        ],
        [
            (
                state(record.state),
                record.actor or "?",
                record.job_id,
                ago(record.enqueued_at, now),
                str(record.attempt or ""),
                record.queue,
                _note(record, now, cancelled=record.job_id in cancelled),
            )
            for record in records
        ],
    )


def _note(record: Record, now: float, *, cancelled: bool) -> str:
    """What is worth knowing of a job in a line."""
    from callboard.operations.moments import ago, span

    if record.state is State.RUNNING:
        parts = [f"for {span(now - (record.started_at or record.updated_at))}"]
        if record.progress:
            parts.append(f"{record.progress:.0%}")
        if record.progress_note:
            parts.append(record.progress_note)
        if cancelled:
            parts.append("cancelled, is stopping")
        return ", ".join(parts)
    if record.state is State.SUCCEEDED:
        if record.started_at is None or record.finished_at is None:
            return ""
        return f"took {span(record.finished_at - record.started_at)}"
    if cancelled and not record.state.is_end:
        return "cancelled, ends when a worker gets to it"
    due = ""
    if record.state in (State.SCHEDULED, State.RETRYING, State.SNOOZED, State.PARKED):
        due = f"due {ago(record.due_at, now)}" if record.due_at is not None else ""
    return "; ".join(part for part in (due, record.reason) if part)


@app.command()
def show(
    ctx: typer.Context,
    job_id: JobId,
    json: Json = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="With the last error's traceback.", show_default=False)
    ] = False,
) -> None:
    """Show all that is known of a job: its story, its payload (secrets masked), why it isn't running."""
    from callboard.cli import output

    with session(ctx).operations() as operations:
        record = operations.jobs.show(operations.jobs.resolve(job_id))
        why = operations.why(record.job_id)
    if json:
        output.as_json(job_json(record, whole=True) | {"why": why.sentence})
        return
    _print_job(record, why.sentence)
    if record.traceback and traceback:
        output.say()
        output.say(record.traceback.rstrip(), style="dim")
    elif record.traceback and record.state is not State.SUCCEEDED:
        output.note(f"The traceback: callboard jobs show {record.job_id} --traceback", style="dim")


def _print_job(record: Record, why: str) -> None:
    from rich.text import Text

    from callboard.cli import output
    from callboard.operations.moments import ago, clock

    def when(moment: float | None) -> str | None:
        return None if moment is None else f"{clock(moment)}, {ago(moment, now)}"

    now = time.time()
    head = Text.assemble((output.printable(record.actor or "?"), "bold"), "  ", record.job_id, "  ")
    output.console().print(head.append_text(output.state(record.state)), soft_wrap=True)
    output.say(why)
    output.say()
    error = f"{record.error_type}: {record.error}" if record.error_type else record.error
    failing = record.state is not State.SUCCEEDED  # what an earlier run said is told by the story
    present = record.state.is_end or record.state is State.RUNNING  # or it tells of an earlier run
    output.facts(
        [
            ("queue", record.queue),
            ("tags", ", ".join(record.tags)),
            ("queued", when(record.enqueued_at)),
            ("due", None if record.state.is_end or record.state is State.RUNNING else when(record.due_at)),
            ("deadline", when(record.expires_at)),
            ("started" if present else "last run", when(record.started_at)),
            ("ended", when(record.finished_at) if record.state.is_end else None),
            ("attempts", str(record.attempt) if record.attempt else None),
            ("worker", record.worker),
            ("payload", record.payload),
            ("error" if record.state is State.DEAD else "last error", error if failing else None),
            ("cause", record.fingerprint if failing else None),
        ]
    )
    if story := _story(record):
        output.say()
        _print_story(story)


def _story(record: Record) -> list[Event]:
    """A job's story with its beginning and its end, which are no lines of it in the store."""
    from callboard.operations.moments import span
    from callboard.store.base import Event

    story = list(record.events)
    if record.enqueued_at is not None:
        begun = Event(at=record.enqueued_at, state=State.QUEUED, attempt=0, worker="", text="")
        story.insert(0, begun)
    told = bool(record.events) and record.events[-1].state is record.state
    if record.state.is_end and record.finished_at is not None and not told:
        took = ""
        if record.state is State.SUCCEEDED and record.started_at is not None:
            took = f"after running for {span(record.finished_at - record.started_at)}"
        story.append(
            Event(
                at=record.finished_at,
                state=record.state,
                attempt=record.attempt,
                worker=record.worker,
                text=took,
            )
        )
    return sorted(story, key=lambda event: event.at)


def _print_story(story: list[Event]) -> None:
    from callboard.cli.output import Column, state, table
    from callboard.operations.moments import clock

    rows: list[tuple[str | Text, ...]] = [
        (clock(event.at), state(event.state), "" if event.text == event.state else event.text, event.worker)
        for event in story
    ]
    table([Column("WHEN"), Column("STATE"), Column("STORY", least=20), Column("WORKER", rank=3)], rows)


@app.command()
def cancel(
    ctx: typer.Context,
    job_ids: Annotated[list[str], typer.Argument(metavar="ID", help="The jobs.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if nothing is known of such a job.", show_default=False)
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", help="Watch running jobs for so long, and tell how they end."
        ),
    ] = 2.0,
    json: Json = False,
) -> None:
    """Cancel jobs: one that waits never starts, one that runs is told, and then interrupted."""
    from callboard.cli import output
    from callboard.cli.exits import ExitCode

    cancelled: list[str] = []
    running: list[str] = []
    with session(ctx).operations() as operations:

        def cancel_one(given: str) -> None:
            job_id = operations.jobs.resolve(given, whole=force)
            asked = operations.jobs.cancellations().get(job_id)
            record = operations.jobs.cancel(job_id, force=force)
            cancelled.append(job_id)
            if record is not None and record.state is State.RUNNING:
                running.append(job_id)
            if not json:
                output.say(_told_of_cancel(job_id, record, asked))

        failures = _each(job_ids, cancel_one)
        late = _watch_them_end(operations, running, wait, tell=not json)
    if json and (cancelled or not failures):
        output.as_json(
            {"cancelled": [job_id for job_id in cancelled if job_id not in late], "too_late": late}
        )
    _tell_of_failures(failures)
    if late and not json:
        raise typer.Exit(ExitCode.REFUSED)


def _each(given: list[str], act: Callable[[str], None]) -> list[CallboardError]:
    """Act on each job; returns why some can't be acted on, which keeps nobody from the others."""
    from callboard.errors import JobNotFound, NotPossible

    failures: list[CallboardError] = []
    for text in given:
        try:
            act(text)
        except (JobNotFound, NotPossible) as error:
            failures.append(error)
    return failures


def _tell_of_failures(failures: list[CallboardError]) -> None:
    """A sentence for each; the last one is raised, and makes the exit code."""
    if not failures:
        return
    *told, last = failures
    for error in told:
        typer.echo(f"callboard: {error}", err=True)
    raise last


def _watch_them_end(operations: Operations, running: list[str], wait: float, *, tell: bool) -> list[str]:
    """Tell what becomes of running jobs within some seconds; returns those that ended by themselves."""
    from callboard.cli import output

    late: list[str] = []
    end, left = time.monotonic() + wait, list(running)
    while left and time.monotonic() < end:
        for job_id in list(left):
            record = operations.jobs.ended_otherwise(job_id)
            if record is not None:
                left.remove(job_id)
                late.append(job_id)
                if tell:
                    output.say(f"Too late, nothing has changed: {job_id} was {record.state} by then.")
            elif operations.jobs.show(job_id).state is State.CANCELLED:
                left.remove(job_id)
                if tell:
                    output.say(f"It has stopped: {job_id}.")
        if left:
            time.sleep(0.1)
    return late


def _told_of_cancel(job_id: str, record: Record | None, asked: float | None) -> str:
    from callboard.operations.moments import span

    running = record is not None and record.state is State.RUNNING
    if asked is not None:
        rest = (
            "it stops when it next looks, or is interrupted"
            if running
            else "it ends when a worker gets to it"
        )
        return f"The cancellation of {job_id} was asked for already, {span(max(0.0, time.time() - asked))} ago: {rest}."
    rest = "it is told, and interrupted if it runs on" if running else "it will not start"
    return f"Asked to cancel {job_id}: {rest}."


@app.command()
def retry(
    ctx: typer.Context,
    job_ids: Annotated[list[str], typer.Argument(metavar="ID", help="Dead jobs.")],
    json: Json = False,
) -> None:
    """Run dead jobs again, with all their attempts before them. The same as `dead replay ID`."""
    from callboard.cli import output

    replayed: list[str] = []
    with session(ctx).operations() as operations:

        def retry_one(given: str) -> None:
            job_id = operations.jobs.resolve(given)
            operations.jobs.retry(job_id)
            replayed.append(job_id)
            if not json:
                output.say(f"Queued again: {job_id}")

        failures = _each(job_ids, retry_one)
    if json and (replayed or not failures):
        output.as_json({"replayed": replayed})
    _tell_of_failures(failures)


def why(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Say in a sentence where a job is, and why it isn't running."""
    from callboard.cli import output
    from callboard.cli.exits import ExitCode

    with session(ctx).operations() as operations:
        answer = operations.why(operations.jobs.resolve(job_id))
    if json:
        document = {"id": answer.job_id, "known": answer.known, "why": answer.sentence}
        output.as_json(document | {"facts": _with_timestamps(answer.facts)})
    else:
        output.say(output.printable(answer.sentence))
    if not answer.known:
        away = "store_error" in answer.facts or "broker_error" in answer.facts
        raise typer.Exit(ExitCode.AWAY if away else ExitCode.NOT_FOUND)


def _with_timestamps(facts: dict[str, Any]) -> dict[str, Any]:
    from callboard.cli.output import timestamp

    moments = {name: timestamp(value) for name, value in facts.items() if name.endswith(("_at", "_since"))}
    return facts | moments


def job_json(record: Record, *, whole: bool = False) -> dict[str, Any]:
    """A job for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp
    from callboard.queues import Priority

    document: dict[str, Any] = {
        "id": record.job_id,
        "state": str(record.state),
        "actor": record.actor,
        "category": record.category,
        "queue": record.queue,
        "priority": Priority(record.priority).word,
        "tags": list(record.tags),
        "payload": payload_json(record.payload),
        "enqueued_at": timestamp(record.enqueued_at),
        "due_at": timestamp(record.due_at),
        "expires_at": timestamp(record.expires_at),
        "started_at": timestamp(record.started_at),
        "finished_at": timestamp(record.finished_at) if record.state.is_end else None,
        "updated_at": timestamp(record.updated_at),
        "attempt": record.attempt,
        "worker": record.worker,
        "error_type": record.error_type,
        "error": record.error,
        "fingerprint": record.fingerprint,
        "reason": record.reason,
        "progress": record.progress,
        "progress_note": record.progress_note,
    }
    if whole:
        document["traceback"] = record.traceback
        document["story"] = [
            {
                "at": timestamp(event.at),
                "state": str(event.state),
                "attempt": event.attempt,
                "worker": event.worker,
                "text": event.text,
            }
            for event in record.events
        ]
    return document


def payload_json(text: str) -> Any:
    """A recorded payload as JSON; as text where it was cut."""
    import json

    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
