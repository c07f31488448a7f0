"""Figures: what one measurement found, by row and column, a value for each round."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Self

_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


class Figures:
    """A table whose cells hold the values of all rounds, and show their median.

    Args:
        columns: Their names, in order; a unit belongs into the name.
        rows: The rows to show even if nothing was measured for them, in order. Others follow as they come.

    Attributes:
        columns: As given.
        rows: All rows.
        notes: Sentences that stand below the table.
    """

    def __init__(self, columns: Iterable[str], rows: Iterable[str] = ()) -> None:
        self.columns = list(columns)
        self.rows = list(rows)
        self.notes: list[str] = []
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, row: str, column: str, value: float) -> None:
        """One round's value."""
        if column not in self.columns:
            raise KeyError(f"there is no column {column!r}, only {self.columns}")
        if row not in self.rows:
            self.rows.append(row)
        self._values.setdefault((row, column), []).append(value)

    def note(self, sentence: str) -> None:
        """Say something below the table, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def values(self, row: str, column: str) -> list[float]:
        """What the rounds found, in their order."""
        return list(self._values.get((row, column), ()))

    def median(self, row: str, column: str) -> float | None:
        """The median of the rounds, None if nothing was measured."""
        values = self._values.get((row, column))
        return statistics.median(values) if values else None

    def markdown(self, first: str = "system") -> str:
        """The table of medians; a cell that wasn't measured is a dash. Then the notes."""
        lines = [f"| {first} | " + " | ".join(self.columns) + " |", "|---" * (len(self.columns) + 1) + "|"]
        for row in self.rows:
            cells = [number(self.median(row, column)) for column in self.columns]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """All values, for a file."""
        rows = {
            row: {column: found for column in self.columns if (found := self.values(row, column))}
            for row in self.rows
        }
        return {"columns": self.columns, "rows": rows, "notes": self.notes}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What `as_json` made."""
        figures = cls(found["columns"], found["rows"])
        for row, columns in found["rows"].items():
            for column, values in columns.items():
                for value in values:
                    figures.add(row, column, value)
        figures.notes = list(found["notes"])
        return figures

    @classmethod
    def tables(cls, text: str) -> list[Self]:
        """The tables of a text, each as one round: of each cell the number that it begins with."""
        found: list[Self] = []
        tables = re.findall(r"^\|.*\n\|[-| ]+\|\n(?:\|.*(?:\n|$))*", text, re.MULTILINE)
        for header, _, *lines in (table.splitlines() for table in tables):
            figures = cls(_cells(header)[1:])
            for row, *cells in map(_cells, lines):
                figures.rows.append(row)
                for column, cell in zip(figures.columns, cells, strict=True):
                    if (match := _NUMBER.match(cell)) is not None:
                        figures.add(row, column, float(match[0].replace(",", "")))
            found.append(figures)
        return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def number(value: float | None) -> str:
    """As it stands in a table: as many digits as mean something, and a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
