"""What a dead process ran can be read from memory that it shared."""

from __future__ import annotations

import subprocess
import sys
import time

from callboard.worker.slots import SlotMemory


def test_what_runs_is_there_until_it_ends() -> None:
    slots = SlotMemory(processes=2, threads=3).of(1)
    slots.start(0, "a-long-id-" + "x" * 100)
    slots.start(2, "b")
    assert slots.running() == ["a-long-id-" + "x" * 100, "b"]
    slots.end(0)
    slots.start(0, "c")
    assert slots.running() == ["c", "b"]
    slots.clear()
    assert slots.running() == []


def test_jobs_that_have_ended_are_counted_until_another_process_gets_the_slots() -> None:
    memory = SlotMemory(processes=2, threads=2)
    slots = memory.of(1)
    for thread in (0, 1, 0):
        slots.start(thread, "x" * 128)
        slots.end(thread)
    slots.start(0, "runs")
    assert (memory.of(0).ended(), memory.of(1).ended()) == (0, 3)
    memory.of(1).clear()
    assert memory.of(1).ended() == 0


def test_an_id_of_the_greatest_length_fits_and_leaves_the_neighbours_alone() -> None:
    memory = SlotMemory(processes=2, threads=1)
    memory.of(1).start(0, "neighbour")
    memory.of(0).start(0, "x" * 128)
    assert memory.of(0).running() == ["x" * 128]
    assert memory.of(1).running() == ["neighbour"]


def test_the_memory_outlives_a_process() -> None:
    # In a process of its own: pytest's may have threads by now, and should not fork.
    subprocess.run([sys.executable, "-W", "error", "-c", _DEATH], check=True, timeout=30)


_DEATH = """
import os, signal
from callboard.worker.slots import SlotMemory

memory = SlotMemory(processes=1, threads=2)
pid = os.fork()
if pid == 0:
    memory.of(0).start(1, "running-when-it-died")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
assert memory.of(0).running() == ["running-when-it-died"]
"""


def test_any_process_can_tell_what_runs_in_another() -> None:
    memory = SlotMemory(processes=2, threads=2)
    memory.of(1).start(1, "job-12")
    mine = memory.of(0)
    assert mine.is_running("job-12")
    assert not mine.is_running("job-1")
    assert not mine.is_running("ob-12")
    memory.of(1).end(1)
    assert not mine.is_running("job-12")


def test_each_run_has_its_start() -> None:
    slots = SlotMemory(processes=1, threads=3).of(0)
    before = time.monotonic()
    slots.start(0, "x" * 128)
    slots.start(2, "b")
    (first, first_start), (second, second_start) = slots.runs()
    assert (first, second) == ("x" * 128, "b")
    assert before <= first_start <= second_start <= time.monotonic()
