"""The `callboard` command.

Importing this imports next to nothing: each command imports what it needs, so that `--help` is quick.
"""

from __future__ import annotations

from typing import NoReturn

from callboard.cli import early_signals


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    early_signals.keep()  # before anything else, which takes longer

    from callboard.cli.exits import run

    run(_command)


def _command() -> None:
    from typer.main import get_command

    from callboard.cli.commands import app

    get_command(app)(prog_name="callboard")
