"""Memory that several processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.metrics.blocks import BlockMemory


def _resident() -> int:
    """Bytes of shared memory that this process really has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel doesn't say")


@pytest.fixture
def memory() -> Iterator[BlockMemory]:
    yield BlockMemory(3, 4096)


def test_entries_are_read_as_they_are_now(memory: BlockMemory) -> None:
    block = memory.of(1)
    assert list(block.read()) == []
    first, second = block.add(b"one", 2), block.add(b"two and more", 3)
    assert first is not None
    assert second is not None
    first[1] = 2.5
    second[0] = -1
    assert list(memory.of(1).read()) == [(b"one", (0.0, 2.5)), (b"two and more", (-1.0, 0.0, 0.0))]


def test_blocks_are_each_other_s_neighbours_and_nothing_more(memory: BlockMemory) -> None:
    for number in range(3):
        while (floats := memory.of(number).add(f"of {number}".encode(), 60)) is not None:
            for place in range(60):
                floats[place] = number
    assert [{value for _, floats in block.read() for value in floats} for block in memory] == [{0}, {1}, {2}]


def test_a_full_block_takes_no_more_and_keeps_what_it_has(memory: BlockMemory) -> None:
    block = memory.of(0)
    assert block.add(b"fits", 400) is not None
    assert block.add(b"doesn't", 400) is None
    assert block.add(b"fits, too", 50) is not None
    assert block.add(b"k" * 10_000, 1) is None
    assert [key for key, _ in block.read()] == [b"fits", b"fits, too"]


def test_a_cleared_block_is_empty_and_all_zeros_and_another_s(memory: BlockMemory) -> None:
    block = memory.of(1)
    floats = block.add(b"old", 100)
    assert floats is not None
    floats[99] = 1.0
    memory.of(2).add(b"neighbour", 1)
    block.clear()
    assert list(block.read()) == []
    again = block.add(b"new", 100)
    assert again is not None
    assert set(again) == {0.0}
    assert [key for key, _ in memory.of(2).read()] == [b"neighbour"]


def test_memory_is_taken_when_it_is_written_and_given_back_when_cleared() -> None:
    before = _resident()
    memory = BlockMemory(50, 1 << 20)
    block = memory.of(7)
    while (floats := block.add(b"key", 1000)) is not None:
        floats[999] = 1.0
    full = _resident() - before
    block.clear()
    assert 1 << 19 < full < 1 << 22, "one block of fifty"
    assert _resident() - before < 1 << 18


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_another_process_wrote_is_there_when_it_is_dead(memory: BlockMemory) -> None:
    pid = os.fork()
    if pid == 0:  # it touches nothing that a thread of the tests might have held
        floats = memory.of(2).add(b"its", 1)
        if floats is not None:
            floats[0] = 42.0
        os._exit(0)
    os.waitpid(pid, 0)
    assert list(memory.of(2).read()) == [(b"its", (42.0,))]
