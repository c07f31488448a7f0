"""The reference is what the commands and settings say of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from callboard import State
from callboard.cli import reference
from callboard.cli.dead import _details_json
from callboard.cli.jobs import job_json
from callboard.cli.quarantine import _suspect_json
from callboard.cli.queues import _queue_json
from callboard.cli.workers import _worker_json
from callboard.operations.letters import LetterDetails, LetterSummary
from callboard.operations.quarantine import Suspect
from callboard.operations.waiting import QueueStatus
from callboard.store.base import Heartbeat, Record

ROOT = Path(__file__).parents[3]
AGAIN = "it is out of date; write it again with: .venv/bin/python -m callboard.cli.reference"


def test_the_commands_are_listed_as_they_are() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == reference.cli_reference(), AGAIN


def test_the_settings_are_listed_as_they_are(tmp_path: Path) -> None:
    # In a process of its own, for the application's settings are those of everything that is imported.
    code = (
        "from callboard.app import load_app\n"
        "from callboard.cli.reference import settings_reference\n"
        "load_app()\n"
        "print(settings_reference(), end='')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    written = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    assert (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8") == written, AGAIN


def test_the_fields_for_programs_are_the_documented_ones() -> None:
    documented = reference.JSON_FIELDS
    record = Record(job_id="j", order=0, state=State.QUEUED, updated_at=0.0)
    letter = LetterSummary(
        job_id="j",
        actor="a",
        category="c",
        queue="q",
        died_at=0.0,
        attempts=1,
        reason="",
        error="",
        fingerprint="",
    )
    details = LetterDetails(summary=letter, payload="", traceback="", enqueued_at=None, story=())
    status = QueueStatus(
        name="q",
        kind="jobs",
        category="c",
        priority="low",
        ready=0,
        claimed=0,
        delayed=None,
        consumers=0,
        paused=None,
    )
    beat = Heartbeat(worker="w", at=0.0, started_at=0.0, host="h", pid=1, queues=(), threads=1)
    suspect = Suspect(id="i", queue="q", reason="", since=None, size=0, body="")

    assert list(job_json(record)) == list(documented["A job"])
    in_full = {**documented["A job"], **documented["A job in full (`jobs show`): also"]}
    assert [*job_json(record, whole=True), "why"] == list(in_full)
    whole_letter = {
        **documented["A dead letter"],
        **documented["A dead letter in full (`dead show`): also"],
    }
    assert list(_details_json(details)) == list(whole_letter)
    assert list(_queue_json(status)) == list(documented["A queue"])
    assert list(_worker_json(beat)) == list(documented["A worker"])
    assert list(_suspect_json(suspect)) == list(documented["A message in quarantine"])


@pytest.mark.parametrize("command", ["dead replay", "jobs watch", "queues purge", "enqueue", "settings"])
def test_every_command_has_a_section(command: str) -> None:
    assert f"\n### callboard {command}\n" in reference.cli_reference()
