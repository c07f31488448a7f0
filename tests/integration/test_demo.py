"""The demo as a person runs it: a command, what it prints, what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callboard.servers import PrivateRabbitmq

ROOT = Path(__file__).parent.parent.parent
DEMO = [sys.executable, "-m", "callboard.cli", "demo"]
TIMEOUT = 300


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files; its path is short, as there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        yield Path(folder)


@pytest.fixture(params=["file", "amqp"])
def broker(request: pytest.FixtureRequest, installed: Callable[..., PrivateRabbitmq]) -> str:
    if request.param == "amqp":
        installed(PrivateRabbitmq).close()
    return str(request.param)


def environment(temporary: Path) -> dict[str, str]:
    # A stray setting of the person's own must not lead the demo elsewhere.
    stray = {"CALLBOARD_STORE_URL": "file:/nonexistent", "CALLBOARD_NAMESPACE": "stray"}
    return {**os.environ, **stray, "TMPDIR": str(temporary)}


def start(temporary: Path) -> subprocess.Popen[str]:
    """The demo, running far enough to have started its worker."""
    demo = subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env=environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "a worker is up" in line:
            return demo
    pytest.fail(f"the demo ended early, with exit code {demo.wait()}")


def left_running(temporary: Path) -> list[str]:
    """The processes that were started with this folder for their temporary files, or in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(temporary).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended
            continue
    return found


def wait_until_none_is_left(temporary: Path) -> None:
    deadline = time.monotonic() + 30
    while left := left_running(temporary):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_demo_loses_nothing_and_tells_what_happened(broker: str, temporary: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--broker", broker],
        cwd=ROOT,
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    story = done.stdout
    assert done.returncode == 0, story + done.stderr

    sent, finished = re.fullmatch(r"sent (\d+), done (\d+), lost 0", story.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert sent == finished
    assert int(sent) >= 200
    assert re.search(
        r"killed worker \d+ while it ran \d+ jobs?; replaced in [\d.]+ m?s; .*ran again", story
    ), story
    assert "failed twice, and went out at attempt 3" in story
    assert "dead letter: compress-image: ObjectNotFound" in story
    assert "so no dead letter is left" in story
    assert story.index(" jobs of four kinds") < story.index("mended: ")

    counts = {
        kind: int(count) for kind, count in re.findall(r"^([a-z-]+) +(\d+) +\d+ .* \S+/ *$", story, re.M)
    }
    assert set(counts) == {"send-email", "export-csv", "compress-image", "clean-generated-files"}
    assert sum(counts.values()) == int(sent)
    folder = Path(re.search(r"The output lies in (\S+)\.", story)[1])  # type: ignore[index]
    assert len(list((folder / "mails").iterdir())) == counts["send-email"]
    assert len(list((folder / "storage" / "exports").iterdir())) == counts["export-csv"]
    assert len(list((folder / "storage" / "pictures").iterdir())) == counts["compress-image"]
    assert not list((folder / "storage" / "generated").rglob("old-*"))

    commands = re.findall(r"^  (/\S+/callboard .+)$", story, re.M)
    assert len(commands) == 3
    for command in commands:
        assert len(command.replace(str(temporary), "/tmp")) <= 78
        tried = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True, check=False)
        assert tried.returncode == 0, tried.stderr
        assert len(tried.stdout.splitlines()) >= 2, tried.stdout
    wait_until_none_is_left(temporary)


def test_ctrl_c_ends_the_demo_and_all_that_it_started(temporary: Path) -> None:
    demo = start(temporary)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "Interrupted: all its processes are stopped" in output
    assert "Traceback" not in output
    wait_until_none_is_left(temporary)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="needs setpriv, by which Linux tells of our death"
)
def test_the_worker_of_a_demo_that_is_killed_ends_too(temporary: Path) -> None:
    demo = start(temporary)
    demo.kill()
    demo.communicate(timeout=60)
    wait_until_none_is_left(temporary)


def test_a_folder_without_an_application_gets_a_sentence(temporary: Path) -> None:
    tried = subprocess.run(
        DEMO,
        cwd=temporary,
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tried.returncode == 5
    # An editable install has the checkout's own broker.py wherever one is, but not its actors.
    assert re.search(
        "run from the folder that has broker.py|run 'make demo' in Callboard's checkout", tried.stderr
    )
    assert "Traceback" not in tried.stderr
    wait_until_none_is_left(temporary)
    assert not list(temporary.iterdir())


def test_an_unknown_broker_gets_a_sentence(temporary: Path) -> None:
    tried = subprocess.run(
        [*DEMO, "--broker", "redis"],
        cwd=ROOT,
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tried.returncode == 5
    assert "--broker file, or --broker amqp" in tried.stderr
