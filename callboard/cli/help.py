"""How help looks: the commands in groups, and plain, for typer's framed help takes twice as long to import."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from callboard.cli.exits import ExitCode

#: The sections of `callboard --help`, in their order.
RUN, LOOK, ABOUT = "Run", "Look and act", "About"


class GroupedCommands(TyperGroup):
    """A group that lists its commands by section, each with a line that is not cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of commands."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                section = getattr(command, "rich_help_panel", None)
                title = section if isinstance(section, str) else "Commands"
                sections.setdefault(title, []).append((name, command.get_short_help_str(limit=200)))
        width = max(len(name) for lines in sections.values() for name, _ in lines)
        for title in sorted(sections, key=_place):
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in sections[title]])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write what the exit codes mean."""
        if self.epilog is not None:
            with formatter.section(self.epilog):
                formatter.write_dl([(str(code.value).rjust(3), code.meaning) for code in ExitCode])


def _place(title: str) -> int:
    order = [RUN, LOOK, ABOUT]
    return order.index(title) if title in order else len(order)
