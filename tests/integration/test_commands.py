"""The commands that run jobs, as processes of their own, on the application of this repository.

`callboard worker` and `dramatiq broker actors periodic` both run its jobs, on the embedded queue and on
RabbitMQ; `periodiq broker actors periodic` sends those that start by themselves. Jobs are sent from here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from callboard.brokers import open_driver
from callboard.brokers.driver import Delivery, Driver, IntakeOptions
from callboard.client import Client
from tests.patience import PATIENCE, until

_BIN = Path(sys.executable).parent
_ROOT = Path(__file__).parents[2]
_TRIAL = "tests.integration.command_app"
_QUEUE = "trial.medium"

COMMANDS = {
    "callboard": [
        str(_BIN / "callboard"),
        "worker",
        "--processes",
        "2",
        "--threads",
        "1",
        "--import",
        _TRIAL,
    ],
    "dramatiq": [
        *(str(_BIN / "dramatiq"), "broker", "actors", "periodic", _TRIAL),
        *("--processes", "2", "--threads", "1"),
    ],
}


@dataclass
class Run:
    """A run of a job that a worker has noted."""

    job_id: str
    pid: int
    attempt: int
    ended: bool = False


@dataclass
class Place:
    """A broker and a folder, with the commands at work there."""

    folder: Path
    url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = Client.open(self.url, send_deadline=PATIENCE)
        self.environment = os.environ | {
            "CALLBOARD_BROKER_URL": self.url,
            "CALLBOARD_STORE_URL": f"file:{self.folder}",
            "CALLBOARD_STORAGE_URL": f"file://{self.folder}/storage",
            "CALLBOARD_ONE_HOST": "1",
            "COMMANDS_FOLDER": str(self.folder),
        }

    # -- processes ---------------------------------------------------------------------------------------

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A command in a session of its own, so that all its processes can be found and killed."""
        with (self.folder / "log").open("ab") as out:
            process = subprocess.Popen(
                command, cwd=_ROOT, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes:
            _kill_all(process)
            process.wait()
        self.client.close()
        for driver in self.drivers:
            driver.close()

    # -- jobs --------------------------------------------------------------------------------------------

    def send(self, count: int) -> set[str]:
        return {self.client.send("hold", category="trial").message_id for _ in range(count)}

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def runs(self) -> list[Run]:
        path = self.folder / "notes"
        runs: list[Run] = []
        for line in path.read_text().splitlines() if path.exists() else ():
            event, job_id, pid, attempt = line.split()
            if event == "start":
                runs.append(Run(job_id, int(pid), int(attempt)))
            else:
                (run,) = (run for run in runs if (run.job_id, run.pid) == (job_id, int(pid)))
                run.ended = True
        return runs

    def ended(self) -> set[str]:
        return {run.job_id for run in self.runs() if run.ended}

    def take(self, count: int) -> list[Delivery]:
        """Claim jobs as another worker would, waiting until there are so many."""
        driver = open_driver(self.url)
        self.drivers.append(driver)
        intake = driver.open_intake(
            IntakeOptions(queues=[_QUEUE], budget=100, worker=f"other-{len(self.drivers)}")
        )
        found: list[Delivery] = []
        end = time.monotonic() + PATIENCE
        while len(found) < count and time.monotonic() < end:
            found += intake.fetch(count - len(found), 0.2)
        assert len(found) == count
        return found

    def ready(self, queue: str = _QUEUE) -> int:
        return self.client.broker.driver.counts([queue])[queue].ready


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a command with all its processes. They are one session, and here also one group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(params=["file", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = f"file:{tmp_path}" if request.param == "file" else request.getfixturevalue("amqp_url")
    place = Place(tmp_path, url)
    yield place
    place.close()
    print(place.log())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_applications_own_jobs_run(place: Place, command: str) -> None:
    old = place.folder / "storage" / "generated" / "old.csv"
    old.parent.mkdir(parents=True)
    old.write_text("a,b\n")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    place.client.send("clean-generated-files", {"prefix": "generated/"}, category="storage")
    place.start(COMMANDS[command])
    until(lambda: not old.exists())


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_gives_unstarted_jobs_back_at_once_and_lets_the_running_ones_finish(
    place: Place, command: str
) -> None:
    process = place.start(COMMANDS[command])
    sent = place.send(6)
    until(lambda: len(place.runs()) == 2)  # two processes of one thread
    process.send_signal(signal.SIGTERM)
    unstarted = {json.loads(delivery.body)["message_id"] for delivery in place.take(4)}
    assert process.poll() is None
    assert place.ended() == set()
    place.let_go()
    assert process.wait(PATIENCE) == 0
    assert place.ended() == sent - unstarted
    assert len(place.runs()) == 2
    assert place.ready() == 0


def test_a_killed_process_of_callboards_worker_is_replaced_and_its_job_runs_again(place: Place) -> None:
    process = place.start(COMMANDS["callboard"])
    sent = place.send(2)
    until(lambda: len(place.runs()) == 2)
    killed, sibling = place.runs()
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: len(place.runs()) == 3)
    again = place.runs()[2]
    assert again.job_id == killed.job_id
    assert again.pid not in (killed.pid, sibling.pid)
    assert process.poll() is None
    place.let_go()
    until(lambda: place.ended() == sent)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert len(place.runs()) == 3  # the sibling's job went on
    assert "worker process replaced" in place.log()


@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_kill_of_all_processes_a_new_start_runs_all_jobs(place: Place, command: str) -> None:
    process = place.start(COMMANDS[command])
    sent = place.send(5)
    until(lambda: len(place.runs()) == 2)
    _kill_all(process)
    process.wait()
    assert place.ended() == set()
    place.let_go()
    process = place.start(COMMANDS[command])
    until(lambda: place.ended() == sent)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert len(place.runs()) == 7  # those that were killed ran once more, and no other did
    assert place.ready() == 0


def test_periodiq_knows_the_schedules_and_sends_nothing_before_its_time(place: Place) -> None:
    zone = ZoneInfo("Europe/Paris")
    midst = datetime.now(zone).replace(hour=3, minute=0, second=0, microsecond=0)
    if abs(datetime.now(UTC) - midst) < timedelta(minutes=3):
        pytest.skip("the cleaning is due just now, so sending it would be right")
    process = place.start([str(_BIN / "periodiq"), "--verbose", "broker", "actors", "periodic"])
    until(lambda: "Nothing to do until" in place.log() or process.poll() is not None)
    assert process.poll() is None
    log = place.log()
    assert "clean-generated-files-daily@storage.low" in log
    (due,) = re.findall(r"Nothing to do until (\S+ \S+?)\.?$", log, re.MULTILINE)
    assert datetime.fromisoformat(due) == _next_three(zone)
    assert not any("Scheduling" in line for line in log.splitlines())
    queues = ["storage.critical", "storage.high", "storage.medium", "storage.low"]
    assert sum(place.ready(queue) for queue in queues) == 0
    assert "ERROR" not in log


def _next_three(zone: ZoneInfo) -> datetime:
    now = datetime.now(zone)
    today = now.replace(hour=3, minute=0, second=0, microsecond=0)
    return today if now < today else today + timedelta(days=1)
