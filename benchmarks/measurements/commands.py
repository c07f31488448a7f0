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
        arguments: Beside `--rounds`.
        quick: The arguments of a quick run.
    """

    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    def run(self, bench: Bench) -> str:
        """What it printed.

        Raises:
            RuntimeError: if it failed; the message ends with its errors.
        """
        bench.say(self.module)
        arguments = self.quick if bench.quick else self.arguments
        command = python_module(self.module, "--rounds", str(bench.rounds), *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.module} failed:\n{done.stderr[-3000:]}")
        return done.stdout.strip()


def figures_of(text: str) -> Figures:
    """The first table of what a command printed."""
    return Figures.from_markdown(text)
