"""Measurements that are commands of their own: the report has what they print, and the gates their first table."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.systems import python_module


@dataclass(frozen=True)
class Command:
    """A module under `benchmarks` that prints Markdown.

    Args:
        module: Its name.
        arguments: Its arguments beside the rounds.
        quick: Those of a quick run.
        rounds: Whether it measures in rounds.
        table: Which of the tables that it prints, from 0, has the figures of the gates.
    """

    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    rounds: bool = True
    table: int = 0

    def run(self, bench: Bench) -> str:
        """What it printed.

        Raises:
            RuntimeError: if it failed; the message ends with its errors.
        """
        bench.say(self.module)
        rounds = ("--rounds", str(bench.rounds)) if self.rounds else ()
        command = python_module(self.module, *rounds, *(self.quick if bench.quick else self.arguments))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.module} failed:\n{done.stderr[-3000:]}")
        return done.stdout.strip()

    def figures(self, text: str) -> Figures:
        """The figures of the gates, out of what was printed; none if that is a sentence about what is missing."""
        tables = Figures.tables(text)
        return tables[self.table] if len(tables) > self.table else Figures([])
