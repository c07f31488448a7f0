"""The page docs/performance.md: what is made anew, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import MEASUREMENTS
from benchmarks.figures import Figures
from benchmarks.report import PAGE, Report, begin, end, marked, replaced

TEXT = f"# By hand\n\n{begin('peers')}\nold\n{end('peers')}\n\nAlso by hand.\n"


def a_report() -> Report:
    report = Report()
    report.figures["peers"] = Figures(["send /s"])
    report.figures["peers"].add("callboard, file", "send /s", 4000.0)
    return report


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    assert replaced(TEXT, "peers", "new") == TEXT.replace("\nold\n", "\n\nnew\n\n")


def test_a_page_made_twice_is_the_same() -> None:
    once = a_report().page(TEXT)
    assert "| callboard, file | 4,000 |" in once
    assert a_report().page(once) == once


def test_a_page_without_one_of_the_marks_is_refused_and_not_cut_off() -> None:
    with pytest.raises(ValueError, match="no marks around 'peers'"):
        replaced(TEXT.replace(end("peers"), ""), "peers", "new")


def test_a_measurement_that_was_not_made_says_how_to_make_it() -> None:
    assert "python -m benchmarks growth --write" in a_report().part("growth")


def test_what_a_command_printed_stands_in_the_page_as_it_is() -> None:
    report = a_report()
    report.figures["promises"] = Figures(["processed /s"])
    report.texts["promises"] = "| one | two |\n|---|---|\n\nand more"
    assert report.part("promises") == report.texts["promises"]


def test_what_was_found_before_is_kept_beside_what_is_found_now(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    report = a_report()
    report.texts["promises"] = "a table"
    report.save(path)
    read = Report.load(path)
    assert read.part("peers") == report.part("peers")
    assert read.part("promises") == "a table"
    assert Report.load(tmp_path / "none.json").figures == {}


def test_the_page_in_docs_has_a_place_for_every_measurement_and_for_the_gates() -> None:
    names = marked(PAGE.read_text())
    assert set(names) == {*MEASUREMENTS, "gates", "aims", "systems"}
    assert len(names) == len(set(names))


def test_the_page_in_docs_says_what_was_kept_of_the_latest_run() -> None:
    text = PAGE.read_text()
    assert Report.load().page(text) == text
