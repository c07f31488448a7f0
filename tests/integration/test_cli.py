"""The installed command, as a newcomer types it: on an application in a folder, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from callboard.store.redis import RedisStore

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

BROKER = """
from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.settings import Settings
from callboard.store import open_store
from middleware import stack

settings = Settings.load()
store = open_store(settings.store_url)
broker = Broker(open_driver(settings.broker_url), store=store, middleware=stack(store), send_deadline=1,
                one_host=settings.one_host)
actor = ActorDecorator(broker)
"""

ACTORS = """
from pathlib import Path

from callboard import Permanent, current_job
from broker import actor


@actor(category="desk")
def write_note(text: str) -> None:
    current_job().progress(0.5, "half")
    Path("note.txt").write_text("first: " + text)


@actor(category="desk")
def read_note(name: str) -> None:
    if not Path(name).exists():
        raise Permanent(f"there is no {name}")
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An application."""
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").touch()
    (tmp_path / "actors" / "desk.py").write_text(ACTORS)
    (tmp_path / "broker.py").write_text(BROKER)
    # Its middleware is Callboard's own, wherever this checkout lies.
    (tmp_path / "middleware").symlink_to(ROOT / "middleware")
    return tmp_path


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    return kept | {"PYTHONPATH": str(ROOT), "CALLBOARD_LOG_FORMAT": "json"}


@pytest.fixture
def run(folder: Path, environment: dict[str, str]) -> Run:
    """Runs the command to its end."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "callboard.cli", *arguments],
            cwd=folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


class Running:
    """A command that goes on, and what it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()

    def wait_for(self, event: str, *, times: int = 1) -> None:
        """Wait until something has been logged so many times."""

        def seen() -> bool:
            return [line["event"] for line in self.lines].count(event) >= times

        with self._changed:
            assert self._changed.wait_for(seen, timeout=PATIENCE), self.lines

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE)
        self._reader.join(timeout=PATIENCE)
        return code


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Callable[..., Running]]:
    """Starts a command that goes on."""
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "callboard.cli", *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Running(process))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(timeout=PATIENCE)
        assert running.process.stderr is not None
        running._reader.join(timeout=PATIENCE)
        running.process.stderr.close()


def test_a_day_at_the_command_line(run: Run, start: Callable[..., Running], folder: Path) -> None:
    queued = run("enqueue", "write_note", "--payload", '{"text": "hello"}')
    assert (queued.returncode, queued.stderr) == (0, "")
    note = queued.stdout.strip()
    assert "no worker consumes that queue" in run("why", note).stdout

    worker = start("worker", "--queues", "desk.*", "--processes", "1", "--threads", "2")
    assert run("jobs", "watch", note, "--timeout", "30").returncode == 0
    assert (folder / "note.txt").read_text() == "first: hello"
    (living,) = json.loads(run("workers", "--json").stdout)["workers"]
    assert (living["threads"], len(living["queues"])) == (2, 4)

    missing = run("enqueue", "read-note", "-p", '{"name": "plan.txt"}').stdout.strip()
    assert run("jobs", "watch", missing, "--timeout", "30").returncode == 6
    (letter,) = json.loads(run("dead", "list", "--json").stdout)["letters"]
    assert (letter["id"], letter["reason"]) == (missing, "permanent: there is no plan.txt")

    (folder / "plan.txt").touch()  # the cause is mended
    replayed = run("dead", "replay", missing)
    assert (replayed.returncode, replayed.stdout) == (0, "Queued again: 1 job\n")
    assert run("jobs", "watch", missing, "--timeout", "30").returncode == 0

    assert worker.stop() == 0
    assert run("dead", "list").stdout == "No dead letters.\n"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_workers_and_commands_meet_in_a_store_in_redis(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    run: Run,
    start: Callable[..., Running],
    folder: Path,
    redis_url: str,
    broker: str,
) -> None:
    environment["CALLBOARD_STORE_URL"] = redis_url
    environment["CALLBOARD_BROKER_URL"] = (
        redis_url if broker == "redis" else request.getfixturevalue("amqp_url")
    )
    note, other = (
        run("enqueue", "write_note", "-p", f'{{"text": "{text}"}}').stdout.strip() for text in ("a", "b")
    )
    assert run("queues", "pause", "desk.medium").returncode == 0
    worker = start("worker", "--queues", "desk.*", "--processes", "1", "--threads", "2")
    worker.wait_for("worker process started")
    assert "desk.medium, which is paused" in run("why", note).stdout
    assert run("jobs", "cancel", other).returncode == 0

    assert run("queues", "resume", "desk.medium").returncode == 0
    assert run("jobs", "watch", other, "--timeout", "30").returncode == 6
    assert run("jobs", "watch", note, "--timeout", "30").returncode == 0
    assert (folder / "note.txt").read_text() == "first: a"
    listed = json.loads(run("jobs", "list", "--json").stdout)["jobs"]
    assert {job["id"]: job["state"] for job in listed} == {note: "succeeded", other: "cancelled"}
    assert worker.stop() == 0
    with closing(RedisStore(redis_url)) as store:
        assert store.workers() == []


def test_dev_loads_the_application_anew_when_a_file_is_saved(
    run: Run, start: Callable[..., Running], folder: Path
) -> None:
    dev = start("dev", "--threads", "1")
    dev.wait_for("scheduler started")
    dev.wait_for("worker process started", times=2)

    actors = folder / "actors" / "desk.py"
    actors.write_text(actors.read_text().replace("first: ", "second: "))
    dev.wait_for("application loaded anew")
    dev.wait_for("worker process stopped", times=2)
    note = run("enqueue", "write_note", "-p", '{"text": "hello"}').stdout.strip()

    assert run("jobs", "watch", note, "--timeout", "30").returncode == 0
    assert (folder / "note.txt").read_text() == "second: hello"
    assert dev.stop() == 0
    assert [line["job_id"] for line in dev.lines if line["event"].startswith("write-note succeeded, ")] == [
        note
    ]


COMMANDS = (
    ["enqueue", "write-note", "-p", '{"text": "x"}'],
    ["queues", "list"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_rabbitmq_that_is_away_gives_one_sentence(run: Run, command: list[str]) -> None:
    done = run(*command, CALLBOARD_BROKER_URL="amqp://ada:geheim@127.0.0.1:1/", CALLBOARD_ONE_HOST="1")

    assert (done.returncode, done.stdout) == (3, "")
    assert "RabbitMQ at 127.0.0.1:1 (vhost '/') is away: connection refused" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (COMMANDS[0], "amqp://127.0.0.1:1/"),
        (["worker"], "amqp://127.0.0.1:1/"),
        (["scheduler"], "redis://127.0.0.1:1/0"),
    ],
    ids=["enqueue", "worker", "scheduler"],
)
def test_a_store_that_other_hosts_cannot_reach_is_refused_in_one_sentence(
    run: Run, command: list[str], url: str
) -> None:
    done = run(*command, CALLBOARD_BROKER_URL=url)

    assert (done.returncode, done.stdout) == (5, "")
    assert "set CALLBOARD_STORE_URL=redis://HOST, or CALLBOARD_ONE_HOST=1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "command", [COMMANDS[0], ["jobs", "list"]], ids=lambda command: " ".join(command[:2])
)
def test_a_folder_that_cannot_be_made_gives_one_sentence(run: Run, folder: Path, command: list[str]) -> None:
    (folder / "file").touch()
    url = f"file:{folder}/file/var"

    done = run(*command, CALLBOARD_BROKER_URL=url, CALLBOARD_STORE_URL=url)

    assert (done.returncode, done.stdout) == (3, "")
    assert f"{folder}/file" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"CALLBOARD_BROKER_URL": "amq://localhost"}, "there is no such driver"),
        ({"CALLBOARD_SEND_DEADLINE": "soon"}, "CALLBOARD_SEND_DEADLINE"),
        ({"CALLBOARD_MODULE": "nonsense"}, "there is no module 'nonsense'"),
    ],
)
def test_a_wrong_setting_gives_one_sentence(run: Run, variables: dict[str, str], sentence: str) -> None:
    done = run("jobs", "list", **variables)

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("callboard: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_actor_that_cannot_be_imported_stops_nobody_from_looking(run: Run, folder: Path) -> None:
    (folder / "actors" / "desk.py").write_text("import nonsense")

    looked = run("jobs", "list")
    assert (looked.returncode, looked.stdout) == (0, "No jobs.\n")
    assert "going on without all actors" in looked.stderr
    assert "No module named 'nonsense'" in looked.stderr
    assert run("enqueue", "write-note").returncode == 5


def test_settings_mask_secrets_and_point_out_mistyped_ones(run: Run) -> None:
    done = run(
        "settings",
        "--json",
        CALLBOARD_BROKER_URL="amqp://ada:geheim@localhost/",
        CALLBOARD_STORE_ULR="file:x",
    )

    assert "geheim" not in done.stdout
    document = json.loads(done.stdout)
    (broker,) = [s for s in document["settings"] if s["variable"] == "CALLBOARD_BROKER_URL"]
    assert broker["source"] == "environment"
    assert document["unknown"] == [{"variable": "CALLBOARD_STORE_ULR", "nearest": "CALLBOARD_STORE_URL"}]


def test_a_reader_that_goes_away_is_no_failure(run: Run, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m callboard.cli schemas --json | head -n 1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_help_is_quick_because_it_imports_next_to_nothing(run: Run, environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['callboard', '--help']\n"
        "from callboard.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    slow = {'pydantic', 'dramatiq', 'rich', 'structlog', 'asyncio', 'redis', 'pika'} & set(sys.modules)\n"
        "    sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "Exit codes:" in done.stdout


def test_the_version_is_printed(run: Run) -> None:
    from callboard import __version__

    assert run("--version").stdout == f"callboard {__version__}\n"
