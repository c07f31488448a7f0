"""What commands print: tables for people, JSON for programs.

Tables have no frames: they line up, fit the terminal, and give up their least important columns when it is
narrow. Piped into a program they are as wide as their contents. Colour is for terminals only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callboard.states import State

if TYPE_CHECKING:
    from rich.progress import Progress

#: The width of what is piped into a program or a file: lines are as long as what they hold.
_PIPED_WIDTH = 2_000
_GAP = 2

STATE_STYLES = {
    State.SCHEDULED: "blue",
    State.QUEUED: "blue",
    State.RUNNING: "cyan",
    State.RETRYING: "yellow",
    State.SNOOZED: "blue",
    State.PARKED: "yellow",
    State.SUCCEEDED: "green",
    State.DEAD: "red",
    State.CANCELLED: "magenta",
    State.EXPIRED: "magenta",
    State.DISCARDED: "magenta",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        least: Where it doesn't fit whole, it is cut to no less than so many characters; 0: it is never cut.
        rank: What goes first when even that is too wide: the column with the highest rank. 0 never goes.
        justify: To which side its cells stand.
        is_id: It holds ids of jobs. Where the table doesn't fit, they are shown by their ends, which every command
            takes, too.
    """

    title: str
    least: int = 0
    rank: int = 0
    justify: Literal["left", "right"] = "left"
    is_id: bool = False


def console(*, stderr: bool = False) -> Console:
    """The terminal, or what stands in its place."""
    stream = sys.stderr if stderr else sys.stdout
    plain = Console(file=stream, highlight=False, markup=False, emoji=False)
    if plain.is_terminal:
        return plain
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, width=_PIPED_WIDTH, soft_wrap=True
    )


def say(text: str = "", style: str = "") -> None:
    """Print a line for people, wrapped between words."""
    console().print(Text(printable(text, keep_lines=True), style=style), soft_wrap=not console().is_terminal)


def note(text: str, style: str = "yellow") -> None:
    """Print a remark on stderr: what a person should know, and a program needn't read.

    One in the style "dim" ends in a command, which is never broken into two lines: it is there to be copied.
    """
    whole = style == "dim" or not console(stderr=True).is_terminal
    console(stderr=True).print(Text(printable(text), style=style), soft_wrap=whole)


def as_json(document: Any, *, compact: bool = False) -> None:
    """Print a JSON document, or a line of JSON."""
    text = json.dumps(document, ensure_ascii=False, indent=None if compact else 2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def answer(document: Any, sentence: str, *, json: bool) -> None:
    """Print what a command did: a JSON document for a program that asks for it, or a sentence for people."""
    if json:
        as_json(document)
    else:
        say(sentence)


def timestamp(moment: float | None) -> str | None:
    """A moment for programs: ISO 8601 in UTC, to the millisecond; None if there is none, or the calendar has none."""
    from callboard.operations.moments import date_of

    date = date_of(moment) if moment is not None else None
    return None if date is None else date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def table(columns: Sequence[Column], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table."""
    cells = [[_cell(value) for value in row] for row in rows]
    if sum(wanted := _widths(columns, cells)) + _GAP * (len(columns) - 1) > console().width:
        cells = [
            [_end_of_id(cell) if column.is_id else cell for column, cell in zip(columns, row, strict=True)]
            for row in cells
        ]
        wanted = _widths(columns, cells)
    widths = _fit(columns, wanted, console().width)
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    shown = [place for place, width in enumerate(widths) if width]
    for place in shown:
        grid.add_column(
            columns[place].title,
            justify=columns[place].justify,
            width=widths[place],
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells:
        grid.add_row(*(row[place] for place in shown))
    _print_grid(grid)


def _print_grid(grid: Table) -> None:
    screen = console()
    if screen.is_terminal:
        screen.print(grid)
        return
    with screen.capture() as capture:
        screen.print(grid)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[Text]]) -> list[int]:
    return [
        max([cell_len(column.title), *(cell_len(row[place].plain) for row in cells)])
        for place, column in enumerate(columns)
    ]


def _end_of_id(cell: Text) -> Text:
    """The end of a long id: a UUIDv7 begins with its time, so jobs of the same minute begin alike."""
    return cell if len(cell) <= 13 else Text(f"…{cell.plain[-12:]}")


def _fit(columns: Sequence[Column], wanted: Sequence[int], width: int) -> list[int]:
    """How wide each column is; 0 where it is left out."""
    widths = list(wanted)

    def excess() -> int:
        shown = [w for w in widths if w]
        return sum(shown) + _GAP * (len(shown) - 1) - width

    def least(place: int) -> int:
        return min(wanted[place], columns[place].least) if columns[place].least else wanted[place]

    while excess() > 0:
        slack = sum(w - least(place) for place, w in enumerate(widths) if w)
        if slack >= excess():
            break
        droppable = [place for place, w in enumerate(widths) if w and columns[place].rank]
        if not droppable:
            break
        widths[max(droppable, key=lambda place: columns[place].rank)] = 0
    for place in sorted(range(len(widths)), key=lambda p: -columns[p].rank):
        if widths[place] and (over := excess()) > 0:
            widths[place] = max(least(place), widths[place] - over)
    return widths


def facts(pairs: Iterable[tuple[str, str | Text | None]]) -> None:
    """Print names and values, one below the other; those without a value are left out."""
    shown = [(name, _cell(value, keep_lines=True)) for name, value in pairs if value]
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in shown:
        grid.add_row(name, value)
    _print_grid(grid)


def state(value: State) -> Text:
    """A state in its colour."""
    return Text(str(value), style=STATE_STYLES[value])


def _cell(value: str | Text, *, keep_lines: bool = False) -> Text:
    return value if isinstance(value, Text) else Text(printable(value, keep_lines=keep_lines))


def printable(text: str, *, keep_lines: bool = False) -> str:
    """A text without control characters: what comes from jobs must not drive the terminal."""
    kept = "\n\t" if keep_lines else ""
    if not keep_lines:
        text = " ".join(text.split()) if any(c in text for c in "\r\n\t") else text
    return "".join(c if c in kept or c.isprintable() else "�" for c in text)


def count(number: int, one: str, many: str = "") -> str:
    """A number of things: '1 job', '1,204 jobs'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class Walking:
    """Shows how far a long walk is, on stderr, to people only."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Walking:
        if console(stderr=True).is_terminal:
            from rich.progress import Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}  {task.completed:,.0f} of {task.total:,.0f}"),
                console=console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, queue: str, seen: int, total: int) -> None:
        """The walk has come so far."""
        if self._bar is None:
            return
        if queue not in self._tasks:
            self._tasks[queue] = self._bar.add_task(queue, total=total)
        self._bar.update(self._tasks[queue], completed=seen, total=total)

    def over(self, queue: str) -> Callable[[int, int], None]:
        """`tell`, for a walk over one queue."""
        return lambda seen, total: self.tell(queue, seen, total)
