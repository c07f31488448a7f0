"""What the demo shows while it runs."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from callboard.demo.knowledge import Knowledge
from callboard.demo.screen import LiveScreen
from callboard.demo.worker import Death, WorkerProcesses
from callboard.operations import Operations
from callboard.states import State
from callboard.store.base import Record
from callboard.testing import Jobs


def test_a_killed_worker_keeps_its_row_so_that_the_numbers_add_up(jobs: Jobs, tmp_path: Path) -> None:
    knowledge = Knowledge(Operations(jobs.broker))
    for number, pid in enumerate([7, 7, 8]):
        knowledge.records[str(number)] = Record(
            job_id=str(number), order=1, state=State.SUCCEEDED, updated_at=0.0, worker=f"host:{pid}:abc"
        )
    worker = WorkerProcesses({}, tmp_path / "log")
    worker.pids = [8]
    worker.deaths[7] = Death(pid=7, running=())
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    screen = LiveScreen(console)
    screen.close()

    with console.capture() as captured:
        console.print(screen._workers(knowledge, worker))
    knowledge.close()

    rows = [line.split() for line in captured.get().splitlines()]
    assert rows == [["worker", "7", "2", "done", "killed"], ["worker", "8", "1", "done"]]
