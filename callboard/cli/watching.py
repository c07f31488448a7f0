"""`callboard jobs watch`: a job's progress, live, until it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.options import JobId, Json, session
from callboard.states import State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from callboard.operations import Operations
    from callboard.store.base import Record

_INTERVAL = 0.25


def watch(
    ctx: typer.Context,
    job_id: JobId,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after so many seconds."),
    ] = None,
    json: Json = False,
) -> None:
    """Watch a job until it ends. Exits with 0 if it succeeded, else with 6.

    With --json, a line for each change: the same fields as `jobs show --json`, without story and traceback.
    """
    from callboard.cli.exits import ExitCode

    with session(ctx).operations() as operations:
        job_id = operations.jobs.resolve(job_id)
        watcher = _JsonWatcher() if json else _watcher_for_people()
        end = None if timeout is None else time.monotonic() + timeout
        with watcher:
            record = _follow(operations, job_id, watcher, end)
    if record.state is not State.SUCCEEDED:
        raise typer.Exit(ExitCode.UNSUCCESSFUL)


def _follow(operations: Operations, job_id: str, watcher: Watcher, end: float | None) -> Record:
    seen: tuple[Any, ...] | None = None
    while True:
        record = operations.jobs.show(job_id)
        now = (record.order, record.state, record.progress, record.progress_note, record.attempt)
        sentence = operations.why(job_id).sentence if watcher.wants_sentence else ""
        watcher.tell(record, sentence, changed=now != seen)
        seen = now
        if record.state.is_end or (end is not None and time.monotonic() > end):
            return record
        time.sleep(_INTERVAL)


class Watcher:
    """Shows a job while it changes."""

    wants_sentence = True

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""

    def tell(self, record: Record, sentence: str, *, changed: bool) -> None:
        """This is how it stands now."""
        raise NotImplementedError


class _JsonWatcher(Watcher):
    wants_sentence = False

    def tell(self, record: Record, sentence: str, *, changed: bool) -> None:
        from callboard.cli.jobs import job_json
        from callboard.cli.output import as_json

        if changed:
            as_json(job_json(record), compact=True)


class _LineWatcher(Watcher):
    """For a file or a pipe: a line for each change."""

    def tell(self, record: Record, sentence: str, *, changed: bool) -> None:
        from callboard.cli.output import say

        if changed:
            say(f"{time.strftime('%H:%M:%S')}  {record.state}  {sentence}")


class _LiveWatcher(Watcher):
    """For a terminal: one line that changes in place, with a bar."""

    def __init__(self) -> None:
        from rich.live import Live

        from callboard.cli.output import console

        self._live = Live(console=console(), refresh_per_second=8)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def tell(self, record: Record, sentence: str, *, changed: bool) -> None:
        self._live.update(_view(record, sentence))


def _watcher_for_people() -> Watcher:
    from callboard.cli.output import console

    return _LiveWatcher() if console().is_terminal else _LineWatcher()


def _view(record: Record, sentence: str) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from callboard.cli.output import printable, state

    head: Text = Text.assemble((printable(record.actor), "bold"), f"  {record.job_id}  ")
    parts: list[RenderableType] = [head.append_text(state(record.state))]
    if record.state is State.RUNNING and record.progress is not None:
        # In a padding, which ends its line: a bar by itself doesn't.
        parts.append(Padding(ProgressBar(total=1.0, completed=record.progress, width=40), 0))
    parts.append(Text(printable(sentence)))
    return Group(*parts)
