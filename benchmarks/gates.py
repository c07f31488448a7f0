"""A gate: something that is asked of Callboard, and where it stands. Those that there are: asked.py.

Each compares figures of one measurement, made in one run. What stands in the way of one that isn't met is
written by hand, in `in_the_way.toml`, under the gate's key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures, number

IN_THE_WAY = Path(__file__).parent / "in_the_way.toml"

Found = Mapping[str, Figures]


@dataclass(frozen=True)
class Gate:
    """Something that is asked.

    Args:
        key: Its name in `in_the_way.toml`.
        measurement: Where its figures come from.
        what: In words.
        value: What was found, None if it wasn't measured.
        asked: The number to compare it with.
        least: Whether that is the least, or else the most.
        unit: Of both numbers.
    """

    key: str
    measurement: str
    what: str
    value: Callable[[Figures], float | None]
    asked: float
    least: bool = True
    unit: str = ""

    def found(self, figures: Found) -> float | None:
        """The number that was found, None if it wasn't measured."""
        measured = figures.get(self.measurement)
        return None if measured is None else self.value(measured)

    def met(self, figures: Found) -> bool | None:
        """Whether it is met, None if it wasn't measured."""
        found = self.found(figures)
        if found is None:
            return None
        return found >= self.asked if self.least else found <= self.asked

    def row(self, figures: Found, in_the_way: Mapping[str, str]) -> str:
        """Its line of the table."""
        found, met = self.found(figures), self.met(figures)
        asked = f"{'at least' if self.least else 'at most'} {self.asked:,g}{self.unit}"
        if found is None:
            return f"| {self.what} | {asked} | - | not measured | |"
        word = "met" if met else "**not met**"
        why = "" if met else in_the_way.get(self.key, "")
        return f"| {self.what} | {asked} | {number(found)}{self.unit} | {word} | {why} |"


def ratio(row: str, column: str, other_row: str, other_column: str = "") -> Callable[[Figures], float | None]:
    """One median to another; by default of the same column."""

    def value(figures: Figures) -> float | None:
        ours, theirs = figures.median(row, column), figures.median(other_row, other_column or column)
        return None if ours is None or not theirs else ours / theirs

    return value


def median(row: str, column: str) -> Callable[[Figures], float | None]:
    """A median as it is."""
    return lambda figures: figures.median(row, column)


def difference(row: str, column: str, other_column: str) -> Callable[[Figures], float | None]:
    """How much larger one column is than another."""

    def value(figures: Figures) -> float | None:
        one, other = figures.median(row, column), figures.median(row, other_column)
        return None if one is None or other is None else one - other

    return value


def in_the_way() -> dict[str, str]:
    """What was written about gates that aren't met, by key."""
    texts: dict[str, str] = tomllib.loads(IN_THE_WAY.read_text())
    return {key: " ".join(text.split()) for key, text in texts.items()}


def table(gates: tuple[Gate, ...], figures: Found, texts: Mapping[str, str], heading: str) -> str:
    """Asked, found, met or not, and what is in the way."""
    lines = [f"| {heading} | asked | found | | what is in the way |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(gate.row(figures, texts) for gate in gates)])
