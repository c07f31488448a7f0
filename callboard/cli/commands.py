"""The tree of commands, and the options of all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from callboard.cli import (
    about,
    dead,
    early_signals,
    jobs,
    quarantine,
    queues,
    schedules,
    scheduling,
    sending,
    watching,
    workers,
)
from callboard.cli.help import ABOUT, LOOK, RUN, GroupedCommands
from callboard.cli.session import Session

app = typer.Typer(
    name="callboard",
    help="Background jobs that are never lost and never hidden.",
    epilog="Exit codes",
    cls=GroupedCommands,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from callboard import __version__

        typer.echo(f"callboard {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    module: Annotated[
        str,
        typer.Option(
            "--module",
            "-m",
            metavar="NAME",
            envvar="CALLBOARD_MODULE",
            help="The module with the application's broker.",
        ),
    ] = "broker",
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True, show_default=False
        ),
    ] = False,
) -> None:
    """Take the options of all commands."""
    del version
    if ctx.invoked_subcommand not in _SERVICES:
        early_signals.let_through()
    ctx.obj = Session(module=module)


#: These listen to signals by themselves.
_SERVICES = ("worker", "dev", "scheduler")

app.command(rich_help_panel=RUN)(workers.worker)
app.command(rich_help_panel=RUN)(scheduling.scheduler)
app.command(rich_help_panel=RUN)(workers.dev)
app.command(rich_help_panel=RUN)(sending.enqueue)


@app.command(rich_help_panel=RUN)
def demo(
    broker: Annotated[
        str, typer.Option("--broker", metavar="KIND", help="Where the jobs wait: file or amqp.")
    ] = "file",
) -> None:
    """Watch real jobs run, fail, survive a kill -9 and finish. Needs no server, and leaves no process behind."""
    from callboard.demo import run_demo

    raise typer.Exit(run_demo(broker=broker))


app.command(rich_help_panel=LOOK)(jobs.why)
jobs.app.command()(watching.watch)
app.add_typer(jobs.app, name="jobs", rich_help_panel=LOOK)
app.add_typer(dead.app, name="dead", rich_help_panel=LOOK)
app.add_typer(queues.app, name="queues", rich_help_panel=LOOK)
app.add_typer(schedules.app, name="schedules", rich_help_panel=LOOK)
app.add_typer(quarantine.app, name="quarantine", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(workers.workers)
app.command(rich_help_panel=LOOK)(about.audit)
app.command(rich_help_panel=ABOUT)(about.schemas)
app.command(rich_help_panel=ABOUT)(about.settings)
