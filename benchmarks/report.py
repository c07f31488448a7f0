"""Medians and ratios of one run, as Markdown."""

from __future__ import annotations

import statistics
from pathlib import Path

COLUMNS = (
    "send /s",
    "send_many /s",
    "processed /s",
    "2 processes /s",
    "p50 ms",
    "p99 ms",
    "CPU s per 10k",
    "RSS MB",
)
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

#: What is asked: (ours, column, theirs, column of theirs, the ratio, whether more is better).
GATES = (
    ("callboard, file", "processed /s", "huey, SQLite (at most once)", "processed /s", 4.0, True),
    ("callboard, file", "send /s", "huey, SQLite (at most once)", "send /s", 1.0, True),
    ("callboard, file", "send_many /s", "huey, SQLite (at most once)", "send /s", 10.0, True),
    ("callboard, RabbitMQ", "processed /s", "dramatiq, RabbitMQ", "processed /s", 3.0, True),
    ("callboard, RabbitMQ", "2 processes /s", "dramatiq, RabbitMQ", "2 processes /s", 4.0, True),
    ("callboard, RabbitMQ", "send /s", "dramatiq, RabbitMQ, confirms", "send /s", 0.9, True),
    ("callboard, RabbitMQ", "CPU s per 10k", "dramatiq, RabbitMQ", "CPU s per 10k", 0.5, False),
    ("callboard, RabbitMQ", "p50 ms", "dramatiq, RabbitMQ", "p50 ms", 1.0, False),
    ("callboard, Redis", "processed /s", "dramatiq, Redis", "processed /s", 3.0, True),
    ("callboard, Redis", "p50 ms", "dramatiq, Redis", "p50 ms", 1.0, False),
)


class Report:
    """What was measured, by system and column."""

    def __init__(self, systems: list[str]) -> None:
        self._systems = systems
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, system: str, column: str, value: float) -> None:
        """One measurement."""
        self._values.setdefault((system, column), []).append(value)

    def median(self, system: str, column: str) -> float | None:
        """The median of what was measured, None if nothing was."""
        values = self._values.get((system, column))
        return statistics.median(values) if values else None

    def markdown(self) -> str:
        """The table of medians, and the ratios that are asked for."""
        lines = ["| system | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for system in self._systems:
            cells = [_cell(self.median(system, column)) for column in COLUMNS]
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
        ratios = [line for gate in GATES if (line := self._gate(*gate)) is not None]
        if ratios:
            lines += ["", "| ratio | measured | asked | |", "|---|---|---|---|", *ratios]
        latency = self.median("callboard, file", "p50 ms")
        if latency is not None:
            met = "met" if latency < 5 else "not met"
            lines.append(f"| callboard, file: p50 | {latency:.1f} ms | under 5 ms | {met} |")
        return "\n".join(lines)

    def _gate(self, ours: str, our: str, theirs: str, their: str, asked: float, more: bool) -> str | None:
        a, b = self.median(ours, our), self.median(theirs, their)
        if a is None or not b:
            return None
        ratio = a / b
        met = "met" if (ratio >= asked if more else ratio <= asked) else "not met"
        word = "at least" if more else "at most"
        return f"| {ours}: {our} to {theirs}: {their} | {ratio:.2f} | {word} {asked:g} | {met} |"

    def write_into(self, path: Path) -> None:
        """Put the tables between the marks of a Markdown file."""
        text = path.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        path.write_text(f"{head}{BEGIN}\n\n{self.markdown()}\n\n{END}{tail}")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
