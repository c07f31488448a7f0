"""How log lines look to people."""

from __future__ import annotations

from callboard.logs import lines_below


def test_a_text_of_several_lines_stands_below_the_line() -> None:
    event = lines_below(None, "error", {"event": "it failed", "file": "a.py", "error": "line 1\nline 2"})
    assert event == {"event": "it failed", "file": "a.py", "exception": "line 1\nline 2"}


def test_it_stands_above_a_traceback_that_is_there_already() -> None:
    event = lines_below(None, "error", {"event": "it failed", "error": "a\nb", "exception": "Traceback\n..."})
    assert event["exception"] == "a\nb\nTraceback\n..."


def test_what_has_one_line_stays_in_it() -> None:
    event = {"event": "it failed", "error": "one line", "exception": "Traceback\n..."}
    assert lines_below(None, "error", dict(event)) == event
