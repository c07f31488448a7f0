"""How a watched job looks in a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from callboard.cli.watching import _view
from callboard.states import State
from callboard.store.base import Record


def test_the_bar_stands_on_a_line_of_its_own() -> None:
    record = Record(
        job_id="0198", order=1, state=State.RUNNING, updated_at=0.0, actor="export-csv", progress=0.5
    )
    screen = StringIO()
    Console(file=screen, width=60).print(_view(record, "Running for 4 s."))
    head, bar, sentence = screen.getvalue().splitlines()
    assert head.split() == ["export-csv", "0198", "running"]
    assert set(bar.strip()) <= {"━", "╸", "╺"}
    assert sentence == "Running for 4 s."
