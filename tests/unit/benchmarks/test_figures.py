"""The tables of a benchmark: medians, and what a cell shows."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures import Figures, number
from benchmarks.measurements.commands import Command


def some_figures() -> Figures:
    figures = Figures(["send /s", "p50 ms"], ["slow", "fast"])
    for value in (3000.0, 1000.0, 2000.0):
        figures.add("fast", "send /s", value)
    figures.add("fast", "p50 ms", 0.512)
    figures.note("Measured twice.")
    return figures


def test_a_cell_is_the_median_of_its_rounds() -> None:
    assert some_figures().median("fast", "send /s") == 2000.0


def test_the_median_is_not_moved_by_one_round_that_was_disturbed() -> None:
    figures = some_figures()
    figures.add("fast", "send /s", 2100.0)
    figures.add("fast", "send /s", 9.0)
    assert figures.median("fast", "send /s") == 2000.0


def test_what_was_not_measured_has_no_median_and_is_a_dash() -> None:
    figures = some_figures()
    assert figures.median("slow", "send /s") is None
    assert "| slow | - | - |" in figures.markdown()


def test_a_table_names_its_columns_and_ends_with_its_notes() -> None:
    assert some_figures().markdown("who") == (
        "| who | send /s | p50 ms |\n|---|---|---|\n| slow | - | - |\n| fast | 2,000 | 0.51 |\n\nMeasured twice."
    )


def test_a_note_is_told_once() -> None:
    figures = some_figures()
    figures.note("Measured twice.")
    assert figures.notes == ["Measured twice."]


def test_a_value_for_a_column_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(KeyError, match="no column 'p99 ms'"):
        some_figures().add("fast", "p99 ms", 1.0)


def test_figures_come_back_from_a_file_as_they_were() -> None:
    figures = some_figures()
    read = Figures.from_json(json.loads(json.dumps(figures.as_json())))
    assert read.markdown() == figures.markdown()
    assert read.values("fast", "send /s") == [3000.0, 1000.0, 2000.0]


def test_printed_tables_are_read_by_the_numbers_that_its_cells_begin_with() -> None:
    text = (
        "Round 1\n\n| | CPU µs per job | added |\n|---|---|---|\n| driver | 12.5 | |\n| + records | 1,040 | +3.0 |\n"
        "\n| thread | CPU µs per job |\n|---|---|\n| claimer | 3 |\n"
    )
    figures, threads = Figures.tables(text)
    assert threads.median("claimer", "CPU µs per job") == 3.0
    assert figures.columns == ["CPU µs per job", "added"]
    assert figures.rows == ["driver", "+ records"]
    assert figures.median("+ records", "CPU µs per job") == 1040.0
    assert figures.median("driver", "added") is None


def test_a_text_without_a_table_has_no_figures() -> None:
    assert Figures.tables("nothing | was | measured\n|---|\n") == []
    assert Command("benchmarks.promises").figures("py-spy is missing").rows == []


def test_a_command_says_which_of_its_tables_the_gates_read() -> None:
    text = "| a | x |\n|---|---|\n| one | 1 |\n\n| b | y |\n|---|---|\n| two | 2.5 |"
    assert Command("benchmarks.publishing", table=1).figures(text).median("two", "y") == 2.5


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (0.304, "0.30"), (12.34, "12.3"), (1000.0, "1,000"), (19_982.4, "19,982")],
)
def test_a_number_has_as_many_digits_as_mean_something(value: float | None, shown: str) -> None:
    assert number(value) == shown
