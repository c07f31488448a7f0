"""How the demo shows itself: live bars under a story on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from callboard.demo.knowledge import Knowledge, process_of
from callboard.demo.worker import WorkerProcesses
from callboard.states import State
from callboard.store.base import Record

#: What matters less. Not "dim", which some terminals make unreadable and others leave out.
FAINT = "bright_black"

_BAR_WIDTH = 34
_PLAIN_EVERY = 2.0
_TIME_WIDTH = 8
KINDS = ("send-email", "export-csv", "compress-image", "clean-generated-files")


class Screen(Protocol):
    """Where the demo tells of itself."""

    console: Console

    def say(self, text: str, style: str = "") -> None:
        """Tell a sentence of the story."""

    def show(self, knowledge: Knowledge, worker: WorkerProcesses, total: int) -> None:
        """Show how far the jobs are."""

    def close(self) -> None:
        """Take away what was only for while it ran."""


def open_screen() -> Screen:
    """The screen for who is watching."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console)
    return PlainScreen(Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=110))


class LiveScreen:
    """For a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, text: str, style: str = "") -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(justify="right", min_width=_TIME_WIDTH, style=FAINT, no_wrap=True)
        grid.add_column()
        grid.add_row(f"{time.monotonic() - self._began:.1f} s", Text(text, style=style))
        self.console.print(grid)

    def show(self, knowledge: Knowledge, worker: WorkerProcesses, total: int) -> None:
        self._live.update(
            Group("", self._bars(knowledge, worker), "", self._workers(knowledge, worker)), refresh=True
        )

    def close(self) -> None:
        self._live.update("", refresh=True)
        self._live.stop()

    def _bars(self, knowledge: Knowledge, worker: WorkerProcesses) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, min_width=21)
        grid.add_column()
        grid.add_column(justify="right", no_wrap=True, min_width=9)
        grid.add_column(no_wrap=True, style=FAINT)
        for kind in KINDS:
            ids = knowledge.ids(kind)
            done = sum(job_id in knowledge.proved for job_id in ids)
            bar = ProgressBar(
                total=len(ids) or 1,
                completed=done,
                width=_BAR_WIDTH,
                complete_style="cyan",
                finished_style="green",
            )
            grid.add_row(f"  {kind}", bar, f"{done} of {len(ids)}", _elsewhere(knowledge, worker, ids))
        return grid

    def _workers(self, knowledge: Knowledge, worker: WorkerProcesses) -> RenderableType:
        running, finished = knowledge.running(), knowledge.finished_by()
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, min_width=21)
        grid.add_column(justify="right", no_wrap=True, min_width=8, style=FAINT)
        grid.add_column(no_wrap=True, overflow="ellipsis", style="cyan")
        for pid in sorted({*worker.pids, *worker.deaths}):
            dead = pid in worker.deaths
            doing = Text("killed", style=FAINT) if dead else _busy_with(running.get(pid, ()))
            grid.add_row(f"  worker {pid}", f"{finished[pid]} done", doing)
        return grid


class PlainScreen:
    """For a file, a pipe, or a log of CI."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told_at = time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')}  {text}")
        sys.stdout.flush()

    def show(self, knowledge: Knowledge, worker: WorkerProcesses, total: int) -> None:
        if time.monotonic() - self._told_at < _PLAIN_EVERY:
            return
        self._told_at = time.monotonic()
        running = sum(len(jobs) for pid, jobs in knowledge.running().items() if pid in worker.pids)
        self.say(f"{len(knowledge.proved)} of {total} jobs done, {running} running")

    def close(self) -> None:
        """Nothing was only for while it ran."""


def _elsewhere(knowledge: Knowledge, worker: WorkerProcesses, ids: Iterable[str]) -> str:
    """Those that are neither waiting nor done, counted."""
    counts: Counter[str] = Counter()
    for record in (knowledge.records[job_id] for job_id in ids if job_id in knowledge.records):
        if record.state is State.RUNNING:
            counts["running" if process_of(record) in worker.pids else "cut short"] += 1
        elif record.state in (State.RETRYING, State.DEAD):
            counts[str(record.state)] += 1
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _busy_with(records: Iterable[Record]) -> str:
    """What a process runs: '2 compress-image, export-csv (6,145 rows)'."""
    parts: dict[str, list[str]] = {}
    for record in records:
        parts.setdefault(record.actor, []).append(record.progress_note)
    texts = []
    for actor, notes in sorted(parts.items()):
        told = ", ".join(note for note in notes if note)
        count = f"{len(notes)} " if len(notes) > 1 else ""
        texts.append(f"{count}{actor} ({told})" if told else f"{count}{actor}")
    return ", ".join(texts)
