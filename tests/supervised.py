"""A worker of several processes on an application of its own, for tests that start, stop and kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import dramatiq

from callboard import envelope
from callboard.brokers import open_driver
from callboard.brokers.driver import Driver, Outgoing, QueueCounts
from callboard.store import open_store
from callboard.store.base import Store
from tests.lines import whole_lines

PATIENCE = 30.0  # seconds that an event may take on a slow machine; none should need them
_ROOT = Path(__file__).parents[1]

_BROKER = """
from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.store import open_store
from middleware import stack

store = open_store("file:var")
broker = Broker(open_driver({url!r}), store=store, middleware=stack(store), one_host=True)
actor = ActorDecorator(broker)
"""

_ACTORS = '''
"""Jobs that note what they do: one line a note, in one write, so that it outlives a kill."""
import os
import time
from pathlib import Path

from broker import actor
from callboard import current_job

VERSION = 1
hoarded = []


def note(*words):
    line = " ".join(map(str, [*words, current_job().id, os.getpid(), current_job().attempt])) + "\\n"
    descriptor = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@actor(retries=0)
def hold(gate: str) -> None:
    note("start")
    while not Path(gate).exists():
        time.sleep(0.01)
    note("end")


@actor(retries=0)
def deaf(seconds: float) -> None:
    note("start")
    time.sleep(seconds)
    note("end")


@actor(retries=0)
def quick() -> None:
    note("start")
    note("end")


@actor(retries=0)
def tell_version() -> None:
    note("version", VERSION)


@actor(retries=0)
def deadly(code: int) -> None:
    note("start")
    os._exit(code)


@actor(retries=0)
def hoard(mebibytes: int) -> None:
    hoarded.append(b"x" * (mebibytes << 20))
    note("end")


@actor(retries=0)
def log_something(text: str) -> None:
    current_job().log.warning(text)
'''

_RUN = """
import json, sys
from pathlib import Path
from callboard.errors import CallboardError
from callboard.logs import configure_logging
from callboard.queues import Priority
from callboard.worker.http_server import Address
from callboard.worker.recycling import Enough
from callboard.worker.options import WorkerOptions
from callboard.worker.supervisor import run_supervisor

options = json.loads(sys.argv[1])
options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
options["watch"] = tuple(map(Path, options.get("watch", ())))
options["reserve"] = {Priority[word]: count for word, count in options.get("reserve", {}).items()}
options["enough"] = Enough(**options.get("enough", {}))
if "http" in options:
    options["http"] = Address.parse(options["http"])

def tell(event):
    fields = {name: getattr(event, name) for name in event.__slots__}
    print(json.dumps(fields), flush=True)

def tick(broker, stop):
    (Path.cwd() / "ticking").write_text(str(len(broker.actors)))
    stop.wait()
    (Path.cwd() / "ticked").touch()

configure_logging(style="json")
if options.pop("ticker", False):
    options["companions"] = {"ticker": tick}
try:
    sys.exit(run_supervisor(WorkerOptions(log_format="json", **options), on_event=tell))
except CallboardError as error:
    print(type(error).__name__, str(error), file=sys.stderr)
    sys.exit(64)
"""


@dataclass
class App:
    """An application in a folder: jobs that hold, end, die and tell their version.

    Attributes:
        folder: Where it is.
        url: Of the broker; by default, messages wait in the folder.
    """

    folder: Path
    url: str = "file:var"
    workers: list[SupervisedWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.write("broker.py", _BROKER.format(url=self.url))
        self.write("actors/__init__.py", "")
        self.write("actors/jobs.py", _ACTORS)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self, **options: Any) -> SupervisedWorker:
        worker = SupervisedWorker(self, options)
        self.workers.append(worker)
        return worker

    def open_driver(self) -> Driver:
        """One more driver on the same messages."""
        return open_driver(self.url, folder=self.folder)

    def send(self, actor: str, *, priority: str = "medium", **payload: Any) -> str:
        """Queue a job; returns its id."""
        job = outgoing(actor, priority, **payload)
        with closing(self.open_driver()) as driver:
            driver.put([job], deadline=PATIENCE)
        return job.job_id

    def notes(self, kind: str | None = None) -> list[list[str]]:
        """What jobs have noted: the words, the job's id, the process, the attempt."""
        path = self.folder / "notes"
        lines = whole_lines(path)
        return [line.split() for line in lines if kind is None or line.startswith(kind + " ")]

    def open(self, gate: str) -> None:
        """Let jobs that hold at a gate go on."""
        (self.folder / gate).touch()

    @cached_property
    def store(self) -> Store:
        return open_store(f"file:{self.folder / 'var'}")

    def counts(self, queue: str = "jobs.medium") -> QueueCounts:
        with closing(self.open_driver()) as driver:
            counts: QueueCounts = driver.counts([queue])[queue]
            return counts

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.store.close()


def outgoing(actor: str, priority: str = "medium", **payload: Any) -> Outgoing:
    """A job of the application, by its actor's name."""
    message: dramatiq.Message[Any] = dramatiq.Message(
        queue_name=f"jobs.{priority}",
        actor_name=actor,
        args=(),
        kwargs=payload,
        options={"callboard": {"v": 1}},
        message_id=envelope.new_job_id(),
        message_timestamp=int(time.time() * 1000),
    )
    return Outgoing(message.queue_name, envelope.encode(message), message.message_id)


class SupervisedWorker:
    """A supervisor in a process of its own, and the events that it tells."""

    def __init__(self, app: App, options: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        self._log = app.folder / f"log-{len(app.workers)}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, json.dumps({"processes": 2, "threads": 4, **options})],
                cwd=app.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.events: list[dict[str, Any]] = []
        self._told: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._told.put(json.loads(line))

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                event = self._told.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {kind!r} came; events: {self.events}; log: {self.log()}") from None
            self.events.append(event)
            if event["kind"] == kind:
                return event

    def ready(self, processes: int = 2) -> list[int]:
        """Wait until so many processes have started that run jobs; returns their pids."""
        pids: list[int] = []
        while len(pids) < processes:
            event = self.wait_for("started")
            if event["companion"] is None:
                pids.append(event["pid"])
        return pids

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_signal_again(self, number: signal.Signals) -> None:
        """As a person does, after a moment: two signals at once are one order."""
        time.sleep(0.4)
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return self._log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def end(self) -> None:
        """Kill whatever is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def app_in(folder: Path, url: str = "file:var") -> Iterator[App]:
    """For a fixture."""
    app = App(folder, url)
    yield app
    app.close()
