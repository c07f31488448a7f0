"""The recorder, on a store that a test can take away, slow down or spoil."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callboard.errors import StoreUnavailable
from callboard.states import State, order
from callboard.store.base import Change
from callboard.store.recorder import Recorder
from callboard.store.sqlite import SQLiteStore

PATIENCE = 30.0


class FaultyStore(SQLiteStore):
    """A store in memory that keeps the batches it is given, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.batches: list[list[str]] = []
        self.away = False
        self.tried = threading.Event()
        self.may_write = threading.Event()
        self.may_write.set()
        self.poison: str | None = None

    def write(self, changes: Sequence[Change]) -> None:
        self.tried.set()
        assert self.may_write.wait(PATIENCE)
        if self.away:
            raise StoreUnavailable("the store is away")
        if self.poison in [change.job_id for change in changes]:
            raise ValueError("poison")
        super().write(changes)
        self.batches.append([change.job_id for change in changes])


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    store = FaultyStore()
    yield store
    store.close()


@pytest.fixture
def recorder_of(store: FaultyStore) -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def make(**options: Any) -> Recorder:
        made.append(Recorder(store, **options))
        return made[-1]

    yield make
    store.away = False
    store.may_write.set()
    for recorder in made:
        recorder.close()


def change(job_id: str, state: State = State.QUEUED, **known: Any) -> Change:
    return Change(job_id=job_id, order=order(0, state), state=state, at=known.pop("at", 1.0), **known)


def test_no_thread_is_started_before_the_first_change(recorder_of: Callable[..., Recorder]) -> None:
    before = threading.active_count()
    recorder = recorder_of()
    assert recorder.flush()
    assert threading.active_count() == before
    recorder.record(change("a"))
    assert threading.active_count() == before + 1


def test_a_change_is_written_soon_without_being_asked_for(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of()
    for job_id in ("a", "b"):  # the second one meets a sleeping thread
        store.tried.clear()
        recorder.record(change(job_id))
        assert store.tried.wait(PATIENCE)
        assert recorder.flush(PATIENCE)
    assert store.batches == [["a"], ["b"]]


def test_changes_are_written_in_batches_and_in_their_sequence(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(batch=100, interval=0.2)
    for n in range(250):
        recorder.record(change(f"{n}"))
    assert recorder.flush(PATIENCE)
    assert [job for batch in store.batches for job in batch] == [f"{n}" for n in range(250)]
    assert max(map(len, store.batches)) <= 100
    assert recorder.pending == 0


def test_changes_that_come_one_after_the_other_share_batches(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    interval = 0.05
    recorder = recorder_of(interval=interval)
    started, recorded = time.monotonic(), 0
    while time.monotonic() < started + 10 * interval:
        recorder.record(change(f"{recorded}"))
        recorded += 1
        time.sleep(0.0005)
    assert recorder.flush(PATIENCE)
    elapsed = time.monotonic() - started
    assert [job for batch in store.batches for job in batch] == [f"{n}" for n in range(recorded)]
    assert len(store.batches) <= 10 + 2 * elapsed / interval


def test_many_changes_recorded_together_keep_their_sequence_and_the_bound(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(batch=10, max_pending=50, interval=PATIENCE)
    store.away = True
    recorder.record_many_lazily([partial(change, f"{n}") for n in range(123)])
    recorder.record_many_lazily([])
    assert recorder.pending <= 50 + 10
    store.away = False
    assert recorder.flush(PATIENCE)
    written = [job for batch in store.batches for job in batch]
    assert written == [f"{n}" for n in range(123)][-len(written) :]
    assert len(written) + recorder.dropped == 123


def test_changes_of_one_job_come_to_one_record_and_keep_their_story(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(interval=0.2)
    recorder.record(change("a", event="sent"))
    recorder.record(change("a", State.RUNNING, worker="w", event="started"))
    recorder.record(change("a", State.RUNNING, progress=0.5))
    recorder.record(change("a", State.SUCCEEDED, finished_at=2.0))
    assert recorder.flush(PATIENCE)
    record = store.get("a")
    assert record is not None
    assert (record.state, record.worker, record.progress) == (State.SUCCEEDED, "w", 0.5)
    assert [event.text for event in record.events] == ["sent", "started"]


def test_a_job_that_reports_progress_all_the_time_does_not_crowd_out_the_others(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(batch=100, interval=0.2)
    store.may_write.clear()
    recorder.record(change("first"))
    assert store.tried.wait(PATIENCE)
    for n in range(1500):
        recorder.record(change("busy", State.RUNNING, progress=n / 1500))
    recorder.record(change("other"))
    store.may_write.set()
    assert recorder.flush(PATIENCE)
    assert len(store.batches) == 2, "1,501 changes of two jobs are one batch"
    record = store.get("busy")
    assert record is not None
    assert record.progress == 1499 / 1500


def test_recording_never_waits_for_a_store_that_hangs(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(max_pending=1000, interval=0)
    store.may_write.clear()
    recorder.record(change("a"))
    assert store.tried.wait(PATIENCE)
    began = time.perf_counter()
    for n in range(5000):
        recorder.record(change(f"{n}"))
    took = time.perf_counter() - began
    assert took < 2, f"5,000 changes took {took:.1f} s while the store hung"
    assert recorder.dropped == 4000
    assert recorder.pending <= 1001
    assert not recorder.flush(0.01)


def test_changes_wait_for_a_store_that_is_away_and_are_written_when_it_is_back(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(interval=0)
    store.away = True
    for n in range(20):
        recorder.record(change(f"{n}"))
    assert store.tried.wait(PATIENCE)
    assert not recorder.flush(0.05)
    store.away = False
    assert recorder.flush(PATIENCE)
    assert recorder.dropped == 0
    assert store.count_by_state() == {State.QUEUED: 20}
    assert store.counters() == {}


def test_beyond_the_bound_the_oldest_changes_are_dropped_and_counted(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(max_pending=10, interval=0, clock=lambda: 99.0)
    store.away = True
    recorder.record(change("held", at=1.0))
    assert store.tried.wait(PATIENCE)
    for n in range(15):
        recorder.record(change(f"{n}", at=10.0 + n))
    assert recorder.dropped == 5
    store.away = False
    assert recorder.flush(PATIENCE)
    assert store.counters() == {
        "records.dropped": 5,
        "records.dropped_since": 10,
        "records.dropped_until": 99,
    }
    assert [store.get(f"{n}") is None for n in (4, 5)] == [True, False]
    assert store.get("held") is not None


def test_a_change_that_cannot_be_written_costs_no_other(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(interval=0.2)
    store.poison = "bad"
    for job_id in ("a", "bad", "b"):
        recorder.record(change(job_id))
    assert recorder.flush(PATIENCE)
    assert recorder.dropped == 1
    assert store.count_by_state() == {State.QUEUED: 2}
    recorder.record(change("c"))
    assert recorder.flush(PATIENCE)
    assert store.counters("records.dropped")["records.dropped"] == 1


def test_closing_writes_what_is_left_and_stops_the_thread(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    before = threading.active_count()
    recorder = recorder_of(interval=5)
    recorder.record(change("a"))
    recorder.close()
    recorder.close()
    assert store.batches == [["a"]]
    assert threading.active_count() == before


def test_a_change_after_closing_is_written_too(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of()
    recorder.record(change("a"))
    recorder.close()
    recorder.record(change("b"))
    assert recorder.flush(PATIENCE)
    assert store.batches == [["a"], ["b"]]


def test_closing_without_a_store_ends_in_time_and_counts_what_is_lost(
    store: FaultyStore, recorder_of: Callable[..., Recorder]
) -> None:
    before = threading.active_count()
    recorder = recorder_of(interval=0)
    store.away = True
    for n in range(5):
        recorder.record(change(f"{n}"))
    recorder.close(0.1)
    deadline = time.monotonic() + PATIENCE
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert (recorder.dropped, recorder.pending) == (5, 0)


def test_many_threads_lose_no_change(store: FaultyStore, recorder_of: Callable[..., Recorder]) -> None:
    recorder = recorder_of(interval=0, batch=50)

    def record(name: str) -> None:
        for n in range(500):
            recorder.record(change(f"{name}-{n}"))

    threads = [threading.Thread(target=record, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert recorder.flush(PATIENCE)
    assert store.count_by_state() == {State.QUEUED: 2000}


def _run(script: str, folder: Path) -> str:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout


_PROLOGUE = """
import os, sys
from callboard.states import State
from callboard.store import open_store
from callboard.store.base import Change
from callboard.store.recorder import Recorder

store = open_store("file:" + sys.argv[1])
recorder = Recorder(store, interval=5)

def record(job_id):
    recorder.record(Change(job_id=job_id, order=1, state=State.QUEUED, at=1.0))
"""


def test_a_program_that_ends_at_once_still_leaves_its_records(tmp_path: Path) -> None:
    _run(_PROLOGUE + "record('a')", tmp_path)
    store = SQLiteStore(tmp_path / "store.db")
    assert store.get("a") is not None
    store.close()


def test_a_forked_child_writes_its_own_changes_and_leaves_the_parents_to_the_parent(tmp_path: Path) -> None:
    script = (
        _PROLOGUE
        + """
store.add("before")
record("parent")
if (pid := os.fork()) == 0:
    assert recorder.pending == 0
    record("child")
    assert recorder.flush(20)
    assert store.get("child") is not None
    assert store.get("parent") is None
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert recorder.flush(20)
assert store.get("parent") is not None
print(store.counters())
"""
    )
    assert _run(script, tmp_path) == "{'before': 1}\n"
