from __future__ import annotations

import smtplib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from callboard.demo.folder import DemoFolder
from callboard.demo.mail_sink import MailSink
from callboard.demo.programme import PlannedJob, Programme, write_programme
from callboard.demo.samples import build_database, copy_photographs, photographs
from callboard.queues import Priority


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoFolder:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return DemoFolder()


@pytest.fixture
def sink(folder: DemoFolder) -> Iterator[MailSink]:
    with MailSink(folder.mails, put_off={}) as sink:
        yield sink


@pytest.fixture
def programme(folder: DemoFolder, sink: MailSink) -> Programme:
    airports = build_database(folder.database)
    names = copy_photographs(photographs(), folder.storage / "photographs")
    return write_programme(folder, airports, names, sink)


def first(programme: Programme, actor: str) -> PlannedJob:
    return next(job for job in programme.jobs if job.actor == actor and job is not programme.unlucky)


def test_it_has_a_few_hundred_jobs_of_four_kinds_at_four_priorities(programme: Programme) -> None:
    assert 200 <= len(programme.jobs) <= 500
    kinds = Counter(job.actor for job in programme.jobs)
    assert set(kinds) == {"send-email", "export-csv", "compress-image", "clean-generated-files"}
    for kind in kinds:
        assert {job.priority for job in programme.jobs if job.actor == kind} == set(Priority)


def test_no_two_jobs_write_to_the_same_place(programme: Programme) -> None:
    destinations = [job.payload["destination"] for job in programme.jobs if "destination" in job.payload]
    assert len(set(destinations)) == len(destinations)


def test_an_export_is_proved_by_as_many_rows_as_the_database_has(
    programme: Programme, folder: DemoFolder
) -> None:
    job = next(job for job in programme.jobs if job.payload.get("parameters") == {"country": "IS"})
    path = folder.storage / job.payload["destination"]
    assert "there is no" in job.proof("id")
    path.parent.mkdir()
    path.write_text("icao\r\nBIRK\r\n")
    assert "1 rows, and the database 79" in job.proof("id").replace("has ", "")
    path.write_text("icao\r\n" + "BIRK\r\n" * 79)
    assert job.proof("id") == ""


def test_a_picture_is_proved_by_its_kind_and_size(programme: Programme, folder: DemoFolder) -> None:
    job = first(programme, "compress-image")
    path = folder.storage / job.payload["destination"]
    width, kind = job.payload["max_width"], job.payload["format"]
    assert "there is no" in job.proof("id")
    path.parent.mkdir()
    path.write_bytes(b"half a picture")
    assert "can't be opened" in job.proof("id")
    Image.new("RGB", (width + 1, 10)).save(path, kind)
    assert "isn't what was asked for" in job.proof("id")
    Image.new("RGB", (width, 10)).save(path, kind)
    assert job.proof("id") == ""


def test_a_cleaning_is_proved_by_what_is_gone_and_what_is_left(
    programme: Programme, folder: DemoFolder
) -> None:
    job = first(programme, "clean-generated-files")
    drafts = folder.storage / job.payload["prefix"]
    yesterday = time.time() - 24 * 3600
    assert all(old.stat().st_mtime < yesterday for old in drafts.glob("old-*"))
    assert "old-1.csv" in job.proof("id")
    for old in drafts.glob("old-*"):
        old.unlink()
    assert job.proof("id") == ""
    (drafts / "new.csv").unlink()
    assert "nothing" in job.proof("id")


def test_a_mail_is_proved_by_its_arrival_under_the_jobs_id(programme: Programme, sink: MailSink) -> None:
    job = first(programme, "send-email")
    assert "no mail came" in job.proof("job-1")
    deliver(sink.port, message_id="<job-1@callboard.example>", to=job.payload["to"][0])
    assert job.proof("job-1") == ""
    assert "no mail came" in job.proof("job-2")


def test_a_stranger_is_put_off_as_often_as_was_said(tmp_path: Path) -> None:
    with MailSink(tmp_path, put_off={"stranger@example.org": 2}) as sink:
        for _ in range(2):
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                deliver(sink.port, message_id="<job@x>", to="stranger@example.org")
            assert refused.value.recipients["stranger@example.org"][0] == 451
        deliver(sink.port, message_id="<job@x>", to="stranger@example.org")
        assert sink.arrivals("job") == 1
        assert (tmp_path / "job.eml").read_text().startswith("Message-ID: <job@x>")


def test_a_mail_that_comes_again_is_known_by_its_message_id(tmp_path: Path) -> None:
    with MailSink(tmp_path, put_off={}) as sink:
        for message_id in ("<one@x>", "<two@x>", "<one@x>"):
            deliver(sink.port, message_id=message_id, to="ada@example.org")
        assert sink.repeats == 1
        assert sink.arrivals("one") == 2


def deliver(port: int, *, message_id: str, to: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "localhost", timeout=30) as connection:
        connection.sendmail("demo@example.org", [to], f"Message-ID: {message_id}\r\n\r\nHello\r\n")
