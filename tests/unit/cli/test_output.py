"""Tables: aligned, and fit for the terminal."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console
from rich.text import Text

from callboard import State
from callboard.cli import exits, output
from callboard.cli.output import Column
from callboard.errors import JobNotFound

ID = "01a1ffdf-cb33-78f5-a31b-273e3917f594"
COLUMNS = [
    Column("STATE"),
    Column("ACTOR", least=8),
    Column("ID", is_id=True),
    Column("TRIES", justify="right", rank=2),
    Column("NOTE", least=10, rank=1),
]
ROWS = [
    (output.state(State.DEAD), "send-email", ID, "3", "no mail server: set CALLBOARD_MAIL_URL to its URL"),
    (output.state(State.QUEUED), "compress-image", ID, "12", ""),
]


def _lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> list[str]:
    """The table on a terminal of some width, without its colours."""
    terminal = Console(file=sys.stdout, width=width, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(output, "console", lambda **_: terminal)
    output.table(COLUMNS, ROWS)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_wide_terminal_shows_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _lines(monkeypatch, capsys, 140) == [
        "STATE   ACTOR           ID                                    TRIES  NOTE",
        f"dead    send-email      {ID}      3  no mail server: set CALLBOARD_MAIL_URL to its URL",
        f"queued  compress-image  {ID}     12",
    ]


def test_a_narrow_one_shortens_ids_and_cuts_what_may_be_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(monkeypatch, capsys, 80)

    assert lines[0] == "STATE   ACTOR           ID             TRIES  NOTE"
    assert lines[1].startswith("dead    send-email      …273e3917f594      3  no mail server: set CALLBOA")
    assert lines[1].endswith("…")
    assert all(len(line) <= 80 for line in lines)


def test_a_very_narrow_one_leaves_columns_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(monkeypatch, capsys, 40)

    assert lines[0] == "STATE   ACTOR           ID"
    assert lines[2] == "queued  compress-image  …273e3917f594"


def test_what_is_piped_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([Column("A", least=5, rank=1), Column("B")], [("x" * 300, "y")])

    assert capsys.readouterr().out.splitlines()[1] == "x" * 300 + "  y"


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([Column("A")], [("[red]no[/red] :smile: [/]",)])
    output.say("[bold]no[/bold] :smile:")

    assert capsys.readouterr().out.splitlines()[1:] == [
        "[red]no[/red] :smile: [/]",
        "[bold]no[/bold] :smile:",
    ]


def test_control_characters_are_replaced() -> None:
    assert output.printable("a\x1b[31mb\x07\x9bc") == "a�[31mb�\N{REPLACEMENT CHARACTER}c"
    assert output.printable("two\nlines\tand more") == "two lines and more"
    assert output.printable("two\nlines", keep_lines=True) == "two\nlines"
    assert output.printable("Grüße 漢字 🎭") == "Grüße 漢字 🎭"


def test_numbers_of_things_agree_with_their_nouns() -> None:
    assert output.count(1, "job") == "1 job"
    assert output.count(1204, "job") == "1,204 jobs"
    assert output.count(2, "copy", "copies") == "2 copies"


def test_moments_for_programs_are_iso_in_utc() -> None:
    assert output.timestamp(1_763_756_102.5) == "2025-11-21T20:15:02.500Z"
    assert output.timestamp(None) is None
    assert output.timestamp(1e15) is None  # beyond the calendar


def test_every_state_has_a_colour() -> None:
    for state in State:
        shown = output.state(state)
        assert isinstance(shown, Text)
        assert shown.style


def test_a_failures_sentence_does_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise JobNotFound("there is no job \x1b[2J\x9b31m")

    with pytest.raises(SystemExit):
        exits.run(fail)
    assert capsys.readouterr().err == "callboard: there is no job �[2J�31m\n"
