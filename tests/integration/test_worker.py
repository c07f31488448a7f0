"""The worker's processes: starting, stopping, restarting, and what they say when they can't."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from callboard.states import State
from tests.patience import until
from tests.supervised import App, app_in, is_alive


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    yield from app_in(tmp_path)


# -- running and stopping ------------------------------------------------------------------------------------


def test_jobs_run_in_all_processes_and_all_stop_with_exit_code_0(app: App) -> None:
    worker = app.start(threads=2)
    pids = worker.ready()
    jobs = [app.send("hold", gate="gate") for _ in range(4)]
    until(lambda: len(app.notes("start")) == 4)
    assert {int(pid) for _, _, pid, _ in app.notes("start")} == set(pids)
    app.open("gate")
    until(lambda: len(app.notes("end")) == 4)
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert {job for _, job, _, _ in app.notes("end")} == set(jobs)
    assert not any(is_alive(pid) for pid in pids)


def test_sigterm_lets_running_jobs_finish_and_gives_the_others_back(app: App) -> None:
    worker = app.start(processes=1, threads=1, grace=60)
    worker.ready(1)
    first = app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    others = [app.send("quick") for _ in range(3)]
    worker.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in worker.log())
    assert app.counts().ready == 3
    app.open("gate")
    assert worker.exit_code() == 0
    assert [job for _, job, _, _ in app.notes("end")] == [first]
    counts = app.counts()
    assert (counts.ready, counts.claimed) == (len(others), 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_interrupts_what_runs_and_gives_it_back_uncounted(
    second: signal.Signals, app: App
) -> None:
    worker = app.start(processes=2, threads=1, grace=3600)
    worker.ready()
    job = app.send("hold", gate="never")
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGINT)
    until(lambda: "running jobs may finish" in worker.log())
    worker.send_signal_again(second)
    assert worker.exit_code() == 0
    counts = app.counts()
    assert (counts.ready, counts.claimed) == (1, 0)
    assert app.notes("end") == []
    record = until(lambda: app.store.get(job))
    assert record.state is State.QUEUED

    app.open("never")
    again = app.start(processes=1)
    again.ready(1)
    until(lambda: app.notes("end"))
    assert [attempt for _, _, _, attempt in app.notes("start")] == ["1", "1"]


def test_two_signals_at_once_are_one_order(app: App) -> None:
    worker = app.start(processes=1, grace=60)
    worker.ready(1)
    app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    until(lambda: "running jobs may finish" in worker.log())
    app.open("gate")
    assert worker.exit_code() == 0
    assert len(app.notes("end")) == 1


def test_after_the_grace_what_runs_is_given_back(app: App) -> None:
    worker = app.start(processes=1, grace=0.2)
    worker.ready(1)
    app.send("hold", gate="never")
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    counts = app.counts()
    assert (counts.ready, counts.claimed) == (1, 0)


def test_a_job_that_cannot_be_interrupted_ends_with_its_process_and_comes_again(app: App) -> None:
    worker = app.start(processes=1, grace=0)
    worker.ready(1)
    app.send("deaf", seconds=3600)
    until(lambda: app.notes("start"))
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    again = app.start(processes=1)
    again.ready(1)
    until(lambda: len(app.notes("start")) == 2)
    assert app.notes("start")[1][3] == "1", "the attempt doesn't count"


def test_ctrl_c_reaches_every_process_and_still_jobs_finish(app: App) -> None:
    worker = app.start(processes=2, threads=1, grace=60)
    worker.ready()
    app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    os.killpg(worker.process.pid, signal.SIGINT)  # as a terminal does
    until(lambda: "running jobs may finish" in worker.log())
    time.sleep(0.3)
    app.open("gate")
    assert worker.exit_code() == 0
    assert len(app.notes("end")) == 1


def test_sigterm_to_every_process_as_systemd_sends_it_is_still_a_graceful_stop(app: App) -> None:
    worker = app.start(processes=2, threads=1, grace=60)
    worker.ready()
    app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    os.killpg(worker.process.pid, signal.SIGTERM)
    until(lambda: "running jobs may finish" in worker.log())
    time.sleep(0.3)
    app.open("gate")
    assert worker.exit_code() == 0
    assert len(app.notes("end")) == 1


def test_only_queues_that_match_are_consumed(app: App) -> None:
    worker = app.start(processes=1, queues=["*.high,*.critical"])
    worker.ready(1)
    app.send("quick", priority="medium")
    app.send("quick", priority="high")
    until(lambda: len(app.notes("end")) == 1)
    assert app.counts("jobs.medium").ready == 1
    [heartbeat] = until(lambda: app.store.workers())
    assert heartbeat.queues == ("jobs.critical", "jobs.high")


def test_a_paused_queue_is_left_alone_within_a_second(app: App) -> None:
    store = app.store
    worker = app.start(processes=2)
    worker.ready()
    app.send("quick")
    until(lambda: len(app.notes("end")) == 1)
    store.pause("jobs.medium")
    time.sleep(1.0)
    app.send("quick")
    time.sleep(0.5)
    assert len(app.notes("end")) == 1
    store.resume("jobs.medium")
    until(lambda: len(app.notes("end")) == 2)


# -- restarting ----------------------------------------------------------------------------------------------


def test_sighup_replaces_the_processes_one_by_one_by_such_that_run_the_new_code(app: App) -> None:
    worker = app.start(processes=2)
    old = worker.ready()
    actors = (app.folder / "actors/jobs.py").read_text()
    app.write("actors/jobs.py", actors.replace("VERSION = 1", "VERSION = 22"))
    worker.send_signal(signal.SIGHUP)
    kinds = [worker.wait_for("started"), worker.wait_for("stopped"), worker.wait_for("started")]
    assert kinds[1]["pid"] in old
    worker.wait_for("stopped")
    for _ in range(20):
        app.send("tell-version")
    until(lambda: len(app.notes("version")) == 20)
    assert {words[1] for words in app.notes("version")} == {"22"}
    assert not any(is_alive(pid) for pid in old)


def test_code_that_cannot_be_loaded_leaves_the_old_processes_at_work(app: App) -> None:
    worker = app.start(processes=1)
    [pid] = worker.ready(1)
    app.write("actors/broken.py", "raise RuntimeError('half-saved')")
    worker.send_signal(signal.SIGHUP)
    until(lambda: "half-saved" in worker.log())
    app.send("quick")
    until(lambda: app.notes("end"))
    assert is_alive(pid)


def test_a_saved_file_is_loaded_and_a_broken_one_waits_for_the_next_save(app: App) -> None:
    worker = app.start(processes=1, watch=[str(app.folder)])
    worker.ready(1)
    actors = (app.folder / "actors/jobs.py").read_text()
    app.write("actors/jobs.py", actors + "\nthis is no python")
    until(lambda: "SyntaxError" in worker.log())
    app.write("actors/jobs.py", actors.replace("VERSION = 1", "VERSION = 333"))
    worker.wait_for("reloaded")
    worker.wait_for("stopped")
    app.send("tell-version")
    assert until(lambda: app.notes("version"))[0][1] == "333"


def test_what_needs_another_callboard_than_the_one_that_runs_asks_for_a_restart(app: App) -> None:
    worker = app.start(processes=1, watch=[str(app.folder)])
    worker.ready(1)
    actors = (app.folder / "actors/jobs.py").read_text()
    app.write("actors/jobs.py", "from callboard import something_newer\n" + actors)
    until(lambda: "restart callboard dev" in worker.log())


def test_the_queues_are_told_in_short(app: App) -> None:
    worker = app.start(processes=1)
    worker.ready(1)
    (started,) = [line for line in worker.log_lines() if line["event"] == "worker started"]
    assert started["queues"] == "jobs.*"


def test_a_companion_runs_in_a_process_of_its_own_and_stops_with_the_worker(app: App) -> None:
    worker = app.start(processes=1, ticker=True)
    started = [worker.wait_for("started") for _ in range(2)]
    [ticker] = [event["pid"] for event in started if event["companion"] == "ticker"]
    until(lambda: (app.folder / "ticking").exists())
    os.kill(ticker, signal.SIGKILL)
    assert worker.wait_for("replaced")["companion"] == "ticker"
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert (app.folder / "ticked").exists()


# -- refusing ------------------------------------------------------------------------------------------------


def test_a_process_that_has_done_enough_jobs_is_replaced_and_what_runs_in_it_ends(app: App) -> None:
    worker = app.start(processes=1, threads=2, grace=60, enough={"jobs": 20})
    (pid,) = worker.ready(1)
    held = app.send("hold", gate="gate")
    until(lambda: app.notes("start"))
    for _ in range(20):
        app.send("quick")
    successor = worker.wait_for("started")["pid"]  # while the job in the old one still runs
    assert is_alive(pid)

    def runs_in_successor() -> bool:
        job = app.send("quick")
        until(partial(_have_ended, app, {job}))
        return [int(pid) for _, ended, pid, _ in app.notes("end") if ended == job] == [successor]

    until(runs_in_successor)  # the old one may have claimed one more before it was told
    assert not _have_ended(app, {held})
    app.open("gate")
    assert worker.wait_for("stopped")["pid"] == pid
    assert worker.events[-1]["exit"] == "exit code 0"
    assert len(app.notes("start")) == len(app.notes("end"))  # none was interrupted
    assert "it has done 20 jobs, of 20 that it may" in worker.log()
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells of a process' memory")
def test_a_process_that_uses_too_much_memory_is_replaced(app: App) -> None:
    worker = app.start(processes=1, threads=1, enough={"memory": 200 << 20})
    (pid,) = worker.ready(1)
    app.send("hoard", mebibytes=1)
    until(lambda: len(app.notes("end")) == 1)
    app.send("hoard", mebibytes=200)
    until(lambda: len(app.notes("end")) == 2)
    assert worker.wait_for("stopped")["pid"] == pid
    assert "MiB, of 200 that it may" in worker.log()
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


def _have_ended(app: App, jobs: set[str]) -> bool:
    return {job for _, job, _, _ in app.notes("end")} >= jobs


def test_urgent_jobs_have_a_thread_of_their_own_however_busy_the_others_are(app: App) -> None:
    worker = app.start(processes=1, threads=1, reserve={"CRITICAL": 1})
    pids = worker.ready(2)
    low = {app.send("hold", gate="gate", priority="low") for _ in range(3)}
    until(lambda: app.notes("start"))
    ((_, _, busy, _),) = app.notes("start")
    for _ in range(2):
        critical = {app.send("quick", priority="critical") for _ in range(3)}
        until(partial(_have_ended, app, critical))
        (reserved,) = {int(pid) for _, job, pid, _ in app.notes("end") if job in critical}
        assert reserved != int(busy)
        assert len([job for _, job, _, _ in app.notes("start") if job in low]) == 1
        os.kill(reserved, signal.SIGKILL)  # whoever takes its place has it reserved, too
        worker.wait_for("replaced")
    assert int(busy) in pids
    app.open("gate")
    until(lambda: _have_ended(app, low))
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


def test_a_thread_for_urgent_jobs_is_refused_where_none_are_consumed(app: App) -> None:
    worker = app.start(queues=["*.low"], reserve={"HIGH": 1})
    assert worker.exit_code() == 64
    assert "a thread is reserved for high jobs, and no queue of such is consumed" in worker.log()


def test_a_pattern_that_matches_nothing_is_refused(app: App) -> None:
    worker = app.start(queues=["mail.*"])
    assert worker.exit_code() == 64
    assert "UnknownQueue" in worker.log()
    assert "no queue matches 'mail.*'; there are jobs.*\n" in worker.log()


def test_an_import_error_is_told_once_with_the_application_s_own_line(app: App) -> None:
    app.write("actors/broken.py", "import jsn\n")
    worker = app.start()
    assert worker.exit_code() == 64
    assert worker.log().count("No module named 'jsn'") == 1
    assert "actors/broken.py" in worker.log()
    assert "importlib" not in worker.log()


def test_an_application_that_ends_the_process_when_it_is_loaded_is_told(app: App) -> None:
    app.write("actors/broken.py", "import os\nos._exit(7)\n")
    worker = app.start()
    assert worker.exit_code() == 64
    assert "exit code 7" in worker.log()


def test_processes_that_cannot_start_are_given_up_with_the_reason_told_once(app: App) -> None:
    app.write(
        "broker.py",
        (app.folder / "broker.py").read_text()
        + "\ndef refuse(*args, **kwargs):\n    raise OSError('the disk is gone')\n"
        + "broker.driver.open_intake = refuse\n",
    )
    worker = app.start()
    assert worker.exit_code() == 1
    lines = [line for line in worker.log_lines() if line["level"] == "error"]
    assert [line["event"] for line in lines] == [
        "a worker process can't start",
        "no worker process could start, giving up",
    ]
    assert "the disk is gone" in lines[0]["error"]


@pytest.mark.parametrize(
    "hazard",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n",
        "import socket\nconnection = socket.socketpair()\n",
    ],
    ids=["threads", "connections"],
)
def test_an_application_that_cannot_be_forked_is_loaded_by_each_process(hazard: str, app: App) -> None:
    app.write("actors/hazard.py", hazard)
    worker = app.start(processes=2)
    pids = worker.ready()
    assert "each worker process loads the application by itself" in worker.log()
    app.send("quick")
    until(lambda: app.notes("end"))
    os.kill(pids[0], signal.SIGKILL)
    assert worker.wait_for("replaced")["replaces"] == pids[0]
    worker.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0
