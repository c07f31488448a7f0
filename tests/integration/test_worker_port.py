"""The port of a worker of several processes: what it tells while they run, die and are replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import until
from tests.supervised import PATIENCE, App, SupervisedWorker, app_in

_COUNTING = """
from prometheus_client import Counter

from actors.jobs import note
from broker import actor

SALES = Counter("shop_sales", "Sales.", ["kind"])


@actor(category="jobs", retries=0)
def sell(kind: str) -> None:
    SALES.labels(kind).inc()
    note("sold")
"""

_ISOLATED = """
import os
import signal
import time
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from actors.jobs import note, quick
from broker import actor
from callboard import Isolation

SALES = Counter("shop_sales", "Sales.", ["kind"])
SECONDS = Histogram("shop_seconds", "Seconds.", buckets=(1, 2))
OPEN = Gauge("shop_open", "Open.")
BIGGEST = Gauge("shop_biggest", "The biggest.", multiprocess_mode="max")


def _sell(number: int) -> None:
    SALES.labels("book").inc()
    SECONDS.observe(1.5)
    BIGGEST.set(number)
    quick.send()


@actor(category="jobs", retries=0, isolated=Isolation(max_jobs=3))
def sell(number: int) -> None:
    _sell(number)


@actor(category="jobs", retries=0, isolated=Isolation(max_jobs=1))
def sell_alone(number: int) -> None:
    _sell(number)


@actor(category="jobs", retries=0)
def sell_here(number: int) -> None:
    _sell(number)


@actor(category="jobs", retries=0, isolated=True)
def keep_open(gate: str) -> None:
    SALES.labels("visit").inc()
    OPEN.inc()
    note("open")
    while not Path(gate).exists():
        time.sleep(0.01)
    OPEN.dec()
"""

#: What forbids to fork a process that has loaded it.
_THREAD = """
import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
"""

_STALLING = '''
import threading

from broker import actor, broker


@actor(category="jobs", retries=0)
def stall() -> None:
    """From here on, whatever is claimed in this process gets no further, and keeps the thread that claims."""
    broker.receive = lambda delivery, intake: threading.Event().wait()
'''


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    yield from app_in(tmp_path)


class Port:
    """Asks a worker's port."""

    def __init__(self, app: App, **options: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.worker: SupervisedWorker = app.start(http=self.address, **options)

    def ready(self, processes: int) -> list[int]:
        """Wait for the worker processes, and the observer; returns the pids of the former."""
        events = [self.worker.wait_for("started") for _ in range(processes + 1)]
        return [event["pid"] for event in events if event["companion"] is None]

    def ask(self, page: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.address}{page}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def series(self) -> dict[tuple[str, str], float]:
        """All that is told, by a sample's name and its labels."""
        return {
            (sample.name, str(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.ask("/metrics")[1])
            for sample in family.samples
        }

    def total(self, name: str) -> float:
        """The sum of a metric over all labels."""
        return sum(value for (sample, _), value in self.series().items() if sample == name)


def test_counts_are_exact_over_processes_kills_and_replacements(app: App) -> None:
    app.write("actors/shop.py", _COUNTING)
    port = Port(app)
    pids = port.ready(2)
    for number in range(150):
        app.send("sell", kind="book")
        if number in (50, 100):
            os.kill(pids.pop(), signal.SIGKILL)
            port.worker.wait_for("replaced")
    until(lambda: len({job for _, job, *_ in app.notes("sold")}) == 150)
    until(lambda: port.total("callboard_jobs_succeeded_total") >= 150 - 2 * 4)
    until(lambda: app.counts().claimed == app.counts().ready == 0)
    runs = len(app.notes("sold"))  # each was noted after it was counted, in one thread
    assert 150 <= runs <= 150 + 2 * 4, "a killed process runs at most a job a thread, which comes again"
    sold = until(lambda: (found := port.total("shop_sales_total")) >= runs and found)
    assert sold <= runs + 2 * 4
    assert port.total("callboard_jobs_started_total") >= sold
    assert port.total("callboard_worker_process_deaths_total") == 2
    assert port.total("callboard_worker_processes") == 2


def test_without_kills_every_job_is_counted_once(app: App) -> None:
    port = Port(app)
    port.ready(2)
    scraping, problems = threading.Event(), []

    def scrape() -> None:
        seen = 0.0
        while not scraping.wait(0.01):
            now = port.total("callboard_jobs_succeeded_total")
            if now < seen:
                problems.append((seen, now))
            seen = now

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        for _ in range(300):
            app.send("quick")
        until(lambda: port.total("callboard_jobs_succeeded_total") >= 300)
        until(lambda: app.counts().claimed == app.counts().ready == 0)
    finally:
        scraping.set()
        scraper.join()
    assert problems == []
    assert port.total("callboard_jobs_started_total") == port.total("callboard_jobs_succeeded_total") == 300
    assert port.total("callboard_job_run_seconds_count") == 300


def test_what_a_dead_process_ran_isn_t_in_progress(app: App) -> None:
    port = Port(app, processes=1)
    (pid,) = port.ready(1)
    for _ in range(3):
        app.send("hold", gate="never")
    until(lambda: port.total("callboard_jobs_in_progress") == 3)
    os.kill(pid, signal.SIGSTOP)  # so that nothing can be counted any more
    os.kill(pid, signal.SIGKILL)
    app.open("never")
    until(lambda: port.total("callboard_jobs_succeeded_total") == 3)
    until(lambda: port.total("callboard_jobs_in_progress") == 0)
    assert port.total("callboard_jobs_started_total") == 6


def test_twenty_dead_processes_leave_nothing_behind(app: App) -> None:
    port = Port(app, processes=4, threads=1)
    pids = port.ready(4)
    supervisor = Path(f"/proc/{port.worker.process.pid}")

    def size() -> tuple[int, int, int]:
        shared = next(
            int(line.split()[1])
            for line in (supervisor / "status").read_text().splitlines()
            if line.startswith("RssShmem:")
        )
        return len(port.series()), len(list((supervisor / "fd").iterdir())), shared

    def run_some() -> None:
        done = port.total("callboard_jobs_succeeded_total")
        for _ in range(8):
            app.send("quick")
        until(lambda: port.total("callboard_jobs_succeeded_total") == done + 8)
        until(
            lambda: app.counts().claimed == 0
        )  # the acknowledgements follow: a kill before them is another run

    run_some()
    until(lambda: port.ask("/readyz")[0] == 200)
    series, files, shared = size()
    for _ in range(5):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pids = [port.worker.wait_for("replaced")["pid"] for _ in pids]
        run_some()
    until(lambda: port.ask("/readyz")[0] == 200)
    assert port.total("callboard_worker_process_deaths_total") == 20
    assert port.total("callboard_jobs_succeeded_total") == 48
    later_series, later_files, later_shared = size()
    assert later_series == series
    assert later_files <= files + 1  # a connection of ours that has just ended
    assert later_shared <= shared + 64, "kilobytes: each process has pages of its own, dead ones none"


@pytest.mark.parametrize("loaded", ["once", "by each"])
def test_what_isolated_jobs_count_is_summed_over_their_processes(loaded: str, app: App) -> None:
    app.write("actors/shop.py", _ISOLATED + (_THREAD if loaded == "by each" else ""))
    port = Port(app)
    port.ready(2)
    count = 24 if loaded == "once" else 5
    for number in range(count):
        app.send(("sell", "sell-alone", "sell-here")[number % 3], number=number)
    until(lambda: port.total("callboard_jobs_succeeded_total") == 2 * count)
    until(lambda: app.counts().claimed == app.counts().ready == 0)
    assert port.total("shop_sales_total") == count
    assert port.total("shop_seconds_count") == count
    assert port.total("shop_seconds_sum") == 1.5 * count
    assert port.total("shop_biggest") == count - 1
    assert port.total("callboard_jobs_enqueued_total") == count, "the jobs that these sent"


def test_gauges_fall_and_counters_stay_when_the_process_of_an_isolated_job_dies(app: App) -> None:
    app.write("actors/shop.py", _ISOLATED)
    port = Port(app, processes=1)
    (worker,) = port.ready(1)
    for _ in range(2):
        app.send("keep-open", gate="never")
    until(lambda: port.total("shop_open") == 2)
    until(lambda: len(app.notes("open")) == 2)
    one, _ = (int(pid) for _, _, pid, _ in app.notes("open"))
    os.kill(one, signal.SIGKILL)
    until(lambda: port.total("shop_open") == 1)
    assert port.total("shop_sales_total") == 2
    until(lambda: port.total("callboard_jobs_dead_total") == 1)

    os.kill(worker, signal.SIGKILL)  # and all its runners with it; the job comes again
    until(lambda: len(app.notes("open")) == 3)
    until(lambda: port.total("callboard_worker_process_deaths_total") == 1)
    until(lambda: port.total("shop_open") == 1)
    assert port.total("shop_sales_total") == 3
    app.open("never")
    until(lambda: port.total("shop_open") == 0)
    until(lambda: port.total("callboard_jobs_succeeded_total") == 1)
    assert port.total("shop_sales_total") == 3


def test_processes_of_isolated_jobs_that_have_ended_leave_nothing_behind(app: App) -> None:
    app.write("actors/shop.py", _ISOLATED)
    port = Port(app, processes=1, threads=2)
    port.ready(1)
    supervisor = Path(f"/proc/{port.worker.process.pid}")
    (memory,) = (fd for fd in (supervisor / "fd").iterdir() if "callboard-metrics" in str(fd.readlink()))

    def run(count: int) -> None:
        done = port.total("shop_sales_total")
        for number in range(count):
            app.send("sell-alone", number=number)
        until(lambda: port.total("shop_sales_total") == done + count)
        until(lambda: app.counts().claimed == app.counts().ready == 0)
        until(lambda: memory.stat().st_blocks == 0)  # no runner lives

    run(2)
    series, files = len(port.series()), len(list((supervisor / "fd").iterdir()))
    run(30)
    assert len(port.series()) == series
    assert len(list((supervisor / "fd").iterdir())) <= files + 1  # a connection of ours that has just ended


def test_a_process_whose_claiming_stands_still_is_replaced(app: App) -> None:
    app.write("actors/stalling.py", _STALLING)
    port = Port(app, processes=1, stalled_after=3.0, grace=5.0)
    (pid,) = port.ready(1)
    until(lambda: port.ask("/readyz") == (200, "ok\n"))
    app.send("stall")
    until(lambda: port.total("callboard_jobs_succeeded_total") == 1)
    jobs = {app.send("quick")}
    until(lambda: app.counts().claimed == 1)  # by the thread that goes no further
    jobs |= {app.send("quick") for _ in range(20)}
    until(lambda: port.ask("/healthz") == (503, f"process {pid} claims nothing although messages wait\n"))
    until(lambda: {job for _, job, *_ in app.notes("end")} == jobs)
    until(lambda: port.ask("/healthz") == (200, "ok\n"))
    assert port.total("callboard_worker_process_stalls_total") == 1
    assert port.total("callboard_worker_process_deaths_total") == 0
    assert {int(pid_) for _, _, pid_, _ in app.notes("end")} != {pid}


@pytest.mark.parametrize("way", ["option", "setting"])
def test_an_address_that_is_none_is_refused_with_a_sentence(way: str, app: App) -> None:
    command = [sys.executable, "-m", "callboard.cli", "worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if way == "option":
        command += ["--http", ":9191"]
    else:
        environment["CALLBOARD_WORKER_HTTP"] = ":9191"
    done = subprocess.run(
        command, cwd=app.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode not in (0, 1)
    assert done.stderr == (
        "callboard: ':9191' isn't an address to serve HTTP on: give HOST:PORT, such as 127.0.0.1:9191 "
        "(0.0.0.0:9191 for all networks)\n"
    )


def test_the_port_is_open_only_while_the_worker_lives(app: App) -> None:
    port = Port(app, processes=1)
    port.ready(1)
    second = app.start(http=port.address, processes=1)
    assert second.exit_code() == 64
    assert f"SettingsError nothing can listen on {port.address}: address already in use" in second.log()
    port.worker.send_signal(signal.SIGTERM)
    assert port.worker.exit_code() == 0
    with pytest.raises(urllib.error.URLError):
        port.ask("/healthz")
