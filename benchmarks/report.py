"""The page docs/performance.md: its generated parts, each between marks of its own, and the figures behind it.

All values of the latest run of each measurement are in `results.json`; the page is made of them, so that it
can be made again when a text changes. What isn't between marks is written by hand and stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import asked, gates
from benchmarks.figures import Figures
from benchmarks.measurements.peers import how_each_is_set_up

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results.json"


class Report:
    """What was measured, by measurement.

    Attributes:
        figures: The tables.
        texts: What a measurement printed, for those that are commands of their own.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figures] = {}
        self.texts: dict[str, str] = {}

    @classmethod
    def load(cls, path: Path = RESULTS) -> Report:
        """What the runs before this one found."""
        report = cls()
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            report.figures = {name: Figures.from_json(one) for name, one in found["figures"].items()}
            report.texts = found["texts"]
        return report

    def save(self, path: Path = RESULTS) -> None:
        """Keep it for the runs after this one."""
        figures = {name: one.as_json() for name, one in sorted(self.figures.items())}
        path.write_text(
            json.dumps({"figures": figures, "texts": self.texts}, indent=1, sort_keys=False) + "\n"
        )

    def part(self, name: str) -> str:
        """What stands between the marks of a measurement; of one that wasn't made, a sentence."""
        if name in self.texts:
            return self.texts[name]
        if name in self.figures:
            return self.figures[name].markdown()
        return f"Not measured yet: `python -m benchmarks {name} --write`."

    def gates(self) -> str:
        """The table of gates."""
        return gates.table(asked.GATES, self.figures, gates.in_the_way(), "gate")

    def aims(self) -> str:
        """The table of aims."""
        return gates.table(asked.AIMS, self.figures, gates.in_the_way(), "aim")

    def page(self, text: str) -> str:
        """The page with all its generated parts made anew."""
        made: Mapping[str, Callable[[], str]] = {
            "gates": self.gates,
            "aims": self.aims,
            "systems": how_each_is_set_up,
        }
        for name in marked(text):
            text = replaced(text, name, made[name]() if name in made else self.part(name))
        return text

    def write(self, path: Path = PAGE) -> None:
        """Make the page's generated parts anew."""
        path.write_text(self.page(path.read_text()))


def begin(name: str) -> str:
    """The mark before a generated part."""
    return f"<!-- bench {name}: begin -->"


def end(name: str) -> str:
    """The mark after it."""
    return f"<!-- bench {name}: end -->"


def marked(text: str) -> list[str]:
    """The names of the parts that a page has marks for."""
    opening, closing = "<!-- bench ", ": begin -->"
    return [
        line.removeprefix(opening).removesuffix(closing)
        for line in text.splitlines()
        if line.startswith(opening) and line.endswith(closing)
    ]


def replaced(text: str, name: str, content: str) -> str:
    """The text with a part between marks replaced.

    Raises:
        ValueError: if a mark is missing.
    """
    head, opening, rest = text.partition(begin(name))
    _, closing, tail = rest.partition(end(name))
    if not opening or not closing:
        raise ValueError(f"the page has no marks around {name!r}")
    return f"{head}{opening}\n\n{content}\n\n{closing}{tail}"
