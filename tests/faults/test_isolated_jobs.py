"""Isolated jobs that do their worst: each is its own failure, in time, and nobody else's."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from callboard.brokers.base import Broker
from callboard.states import State
from callboard.store.base import Record
from callboard.worker.worker import Worker
from tests.patience import until
from tests.supervised import PATIENCE, is_alive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolated jobs need Linux")

#: Seconds that a slow machine may take on top of what is promised.
SLOWNESS = 20.0
_ENDED = {State.SUCCEEDED, State.DEAD, State.CANCELLED}
_APP = Path(__file__).with_name("isolated_app.py")


class Bench:
    """The application of `isolated_app`, and a worker in this process that runs its jobs."""

    def __init__(self, app: ModuleType, folder: Path) -> None:
        self.app: Any = app
        self.folder = folder
        self.broker: Broker = app.broker
        self.worker = Worker(self.broker, sorted(self.broker.queues), threads=3)

    def record(self, job_id: str) -> Record | None:
        assert self.broker.store is not None
        return self.broker.store.get(job_id)

    def run(self, actor: str, **payload: Any) -> Record:
        """Run a job to its end; returns its record."""
        return self.end_of(getattr(self.app, actor).send(**payload).message_id)

    def end_of(self, job_id: str) -> Record:
        def ended() -> Record | None:
            record = self.record(job_id)
            return record if record is not None and record.state in _ENDED else None

        record: Record = until(ended)
        return record

    def result(self, actor: str, **payload: Any) -> Any:
        return self.result_of(getattr(self.app, actor).send(**payload))

    def result_of(self, message: Any) -> Any:
        backend = self.broker.get_results_backend()
        return message.get_result(backend=backend, block=True, timeout=int(PATIENCE * 1000))

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def forget_notes(self) -> None:
        (self.folder / "notes").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def _bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("isolated")
    (folder / "isolated_jobs.py").write_text(_APP.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOLATED_FOLDER", str(folder))
        patch.syspath_prepend(folder)
        app = importlib.import_module("isolated_jobs")
        bench = Bench(app, folder)
        bench.worker.start()
        yield bench
        bench.worker.stop(grace=5.0)
        bench.broker.close()
        del sys.modules["isolated_jobs"]


@pytest.fixture
def bench(_bench: Bench) -> Bench:
    _bench.forget_notes()
    return _bench


def test_a_job_runs_in_another_process_and_its_result_comes_back(bench: Bench) -> None:
    message = bench.app.describe.using(tags=["red"]).send(numbers=[1, 2], moment=3.5)
    found = bench.result_of(message)
    assert found.pop("pid") != os.getpid()
    assert found == {
        "sum": 3,
        "moment": 3.5,
        "id": message.message_id,
        "attempt": 1,
        "tags": ["red"],
        "queue": "isolated_jobs.medium",
    }


def test_a_warm_process_is_used_again(bench: Bench) -> None:
    pids = {bench.result("describe", numbers=[], moment=1)["pid"] for _ in range(5)}
    assert len(pids) == 1


def test_a_process_can_be_for_one_job_only(bench: Bench) -> None:
    pids = {bench.result("tell_pid_once") for _ in range(3)}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_a_process_that_no_longer_suits_makes_room_for_one_that_does(bench: Bench) -> None:
    used = bench.result("describe", numbers=[], moment=1)["pid"]
    assert bench.result("tell_pid_once") != used
    until(lambda: not is_alive(used))


def test_async_jobs_are_isolated_too(bench: Bench) -> None:
    assert bench.result("wait_a_little", seconds=0.01) != os.getpid()


def test_progress_is_recorded_while_it_runs(bench: Bench) -> None:
    message = bench.app.report.send(gate=str(bench.folder / "gate"))
    record = until(lambda: (found := bench.record(message.message_id)) and found.progress and found)
    assert record.state == State.RUNNING
    assert (record.progress, record.progress_note) == (0.5, "half of it")
    (bench.folder / "gate").touch()
    assert bench.end_of(message.message_id).state == State.SUCCEEDED


def test_a_checkpoint_outlives_the_process_and_the_next_attempt_resumes(bench: Bench) -> None:
    assert bench.run("resume").state == State.SUCCEEDED
    assert bench.notes() == ["resume null", 'resume {"done": 7}']


def test_permanent_ends_it_and_snooze_brings_it_back(bench: Bench) -> None:
    record = bench.run("stop_for_good")
    assert (record.state, record.reason) == (State.DEAD, "permanent: never again")
    snoozed = bench.app.come_back.send().message_id
    record = until(lambda: (found := bench.record(snoozed)) and found.state == State.SNOOZED and found)
    assert record.reason == "too early"
    assert record.due_at is not None
    assert record.due_at > time.time() + 3_000


def test_the_policy_of_retries_sees_the_kind_of_error_and_when_it_asks_to_come_back(bench: Bench) -> None:
    record = bench.run("look_up")
    assert (record.state, record.attempt, record.error_type) == (State.DEAD, 1, "KeyError")
    record = bench.run("fail_fleetingly")
    assert (record.state, record.attempt, record.error_type) == (State.DEAD, 2, "Fleeting")
    assert bench.notes() == ["fleeting", "fleeting"]


def test_a_traceback_comes_back_with_its_cause(bench: Bench) -> None:
    record = bench.run("fail_with_a_cause")
    assert (record.error_type, record.error) == ("RuntimeError", "no number")
    assert 'int("seven")' in record.traceback
    assert "direct cause" in record.traceback


def test_an_error_that_cannot_be_made_or_said_is_told_all_the_same(bench: Bench) -> None:
    record = bench.run("fail_strangely")
    assert (record.state, record.error_type) == (State.DEAD, "Strange")
    assert "its text can't be had" in record.error


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("sys.exit", "SystemExit", "3"),
        ("os._exit", "IsolatedJobDied", "ended with exit code 3"),
        ("segfault", "IsolatedJobDied", "was killed by signal 11 (SIGSEGV)"),
        ("SIGKILL", "IsolatedJobDied", "was killed by signal 9 (SIGKILL)"),
        ("close", "IsolatedJobDied", "connection to the worker"),
        ("spoil", "IsolatedJobDied", "connection to the worker"),
    ],
)
def test_whatever_ends_the_process_is_a_failure_of_the_job(
    bench: Bench, how: str, kind: str, text: str
) -> None:
    record = bench.run("leave", how=how)
    assert (record.state, record.error_type) == (State.DEAD, kind)
    assert text in record.error
    assert bench.result("work_beside") == os.getpid()


def test_a_segfault_tells_the_line_that_it_happened_in(bench: Bench) -> None:
    record = bench.run("leave", how="segfault")
    assert "in leave" in record.traceback


def test_the_gil_held_by_an_isolated_job_stops_nobody_else(bench: Bench) -> None:
    message = bench.app.hold_the_gil.send(seconds=300)
    [holding] = until(bench.notes)
    for _ in range(10):
        assert bench.result("work_beside") == os.getpid()
    assert bench.notes() == [holding], "it must not have let go before the others were done"
    os.kill(int(holding.split()[1]), signal.SIGKILL)
    assert bench.end_of(message.message_id).error_type == "IsolatedJobDied"


@pytest.mark.parametrize(
    ("actor", "limit"),
    [
        ("hold_the_gil_for_too_long", 1.0),
        ("sleep_for_too_long", 0.5),
        ("refuse_to_end", 0.5),
        ("wait_for_ever", 0.5),
    ],
)
def test_a_time_limit_ends_whatever_it_is_in(bench: Bench, actor: str, limit: float) -> None:
    bench.result("describe", numbers=[], moment=1)
    record = bench.run(actor)
    assert (record.state, record.error_type) == (State.DEAD, "TimeLimitExceeded")
    assert f"its limit of {limit:g} s" in record.error
    assert record.started_at is not None
    assert record.finished_at is not None
    assert record.finished_at - record.started_at < limit + 2 + SLOWNESS


def test_a_run_that_is_killed_at_its_limit_tells_where_it_was(bench: Bench) -> None:
    record = bench.run("hold_the_gil_for_too_long")
    assert "in hold_the_gil_for_too_long" in record.traceback


def test_a_job_that_eats_memory_is_killed_at_its_limit(bench: Bench) -> None:
    record = bench.run("eat_memory")
    assert (record.state, record.error_type) == (State.DEAD, "MemoryExceeded")
    assert "killed by signal 9 (SIGKILL) while at" in record.error
    assert "limit 300 MiB" in record.error


def test_a_cancelled_job_sees_the_flag(bench: Bench) -> None:
    message = bench.app.stay_till_cancelled.send()
    until(lambda: bench.notes())
    cancel(bench, message.message_id)
    assert bench.end_of(message.message_id).state == State.CANCELLED
    assert bench.notes() == ["staying", "saw the flag"]


def test_a_job_that_goes_on_though_cancelled_is_killed(bench: Bench) -> None:
    message = bench.app.stay_though_cancelled.send()
    until(lambda: bench.notes())
    cancel(bench, message.message_id)
    record = bench.end_of(message.message_id)
    assert (record.state, record.attempt) == (State.CANCELLED, 1)


def test_a_process_forked_inside_a_job_does_not_answer_for_it(bench: Bench) -> None:
    assert bench.run("fork_inside").state == State.SUCCEEDED
    assert bench.notes() == ["forked"]


def test_what_a_dead_job_has_started_ends_with_it(bench: Bench) -> None:
    record = bench.run("leave_a_process_behind")
    assert record.error_type == "IsolatedJobDied"
    [left] = bench.notes()
    until(lambda: not is_alive(int(left.split()[1])))


def test_a_result_that_is_too_large_is_refused_and_says_so(bench: Bench) -> None:
    record = bench.run("return_too_much")
    assert (record.state, record.attempt, record.error_type) == (State.DEAD, 1, "Permanent")
    assert "over the limit" in record.error


def test_the_worker_goes_on_when_the_nursery_is_killed(bench: Bench) -> None:
    message = bench.app.stay.send(gate=str(bench.folder / "never"))
    [staying] = until(bench.notes)
    runner = int(staying.split()[1])
    nursery = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(nursery, signal.SIGKILL)
    assert bench.end_of(message.message_id).error_type == "IsolatedJobDied"
    until(lambda: not is_alive(runner))
    assert bench.result("describe", numbers=[1], moment=1)["sum"] == 1


def cancel(bench: Bench, job_id: str) -> None:
    assert bench.broker.store is not None
    bench.broker.store.cancel(job_id, at=time.time())
