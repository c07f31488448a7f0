"""Only what is old and below the prefix goes."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from callboard.errors import Permanent
from services import cleaner, storage
from services.cleaner import InvalidCleaning
from services.storage import InvalidKey, LocalStorage

NOW = datetime(2026, 7, 1, 3, tzinfo=UTC)
DAY = timedelta(hours=24)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def files(root: Path) -> LocalStorage:
    return LocalStorage(root)


def put(files: LocalStorage, root: Path, key: str, age: timedelta, data: bytes = b"12345") -> None:
    files.put(key, data)
    written = (NOW - age).timestamp()
    os.utime(root / key, (written, written))


def keys(files: LocalStorage) -> list[str]:
    return sorted(file.key for file in files.list())


def test_what_is_older_goes_and_the_rest_stays(files: LocalStorage, root: Path) -> None:
    put(files, root, "generated/old", timedelta(hours=25))
    put(files, root, "generated/deep/down/old", timedelta(days=400))
    put(files, root, "generated/exactly", DAY)
    put(files, root, "generated/new", timedelta(hours=23))
    put(files, root, "generated-not/old", timedelta(days=400))
    put(files, root, "uploads/old", timedelta(days=400))

    report = cleaner.clean("generated/", DAY, now=NOW, within=files)

    assert (report.deleted, report.kept, report.bytes) == (2, 2, 10)
    assert keys(files) == ["generated-not/old", "generated/exactly", "generated/new", "uploads/old"]


def test_a_second_cleaning_finds_nothing_left(files: LocalStorage, root: Path) -> None:
    put(files, root, "generated/old", timedelta(hours=25))

    cleaner.clean("generated", DAY, now=NOW, within=files)
    report = cleaner.clean("generated", DAY, now=NOW, within=files)

    assert (report.deleted, report.kept, report.bytes) == (0, 0, 0)


@pytest.mark.parametrize("prefix", ["", "/", " ", "//"])
def test_the_whole_storage_is_never_cleaned(files: LocalStorage, root: Path, prefix: str) -> None:
    put(files, root, "a/old", timedelta(days=400))

    with pytest.raises(InvalidCleaning, match="the whole storage") as raised:
        cleaner.clean(prefix, DAY, now=NOW, within=files)

    assert isinstance(raised.value, Permanent)
    assert keys(files) == ["a/old"]


@pytest.mark.parametrize("prefix", ["..", "../x", "a/../..", ".", "a/..", "%2e%2e", "/etc", "."])
def test_a_prefix_that_leads_elsewhere_is_refused(
    files: LocalStorage, root: Path, tmp_path: Path, prefix: str
) -> None:
    put(files, root, "a/old", timedelta(days=400))
    (tmp_path / "x").write_text("outside")

    with pytest.raises(InvalidKey):
        cleaner.clean(prefix, DAY, now=NOW, within=files)

    assert keys(files) == ["a/old"]
    assert (tmp_path / "x").exists()


def test_a_link_below_the_prefix_is_not_followed(files: LocalStorage, root: Path, tmp_path: Path) -> None:
    put(files, root, "generated/old", timedelta(days=400))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_text("outside")
    os.utime(outside / "old", (0, 0))
    (root / "generated" / "link").symlink_to(outside)

    assert cleaner.clean("generated", DAY, now=NOW, within=files).deleted == 1

    assert (outside / "old").exists()


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=-1)])
def test_an_age_that_isnt_positive_is_refused(files: LocalStorage, age: timedelta) -> None:
    with pytest.raises(InvalidCleaning, match="older than some time"):
        cleaner.clean("generated", age, now=NOW, within=files)


def test_a_file_that_is_written_anew_during_the_cleaning_is_kept(files: LocalStorage, root: Path) -> None:
    put(files, root, "generated/a", timedelta(days=2))
    put(files, root, "generated/b", timedelta(days=2))

    def progress(seen: int) -> None:
        if seen == 1:
            put(files, root, "generated/b", timedelta(0))

    report = cleaner.clean("generated", DAY, now=NOW, within=files, progress=progress)

    assert (report.deleted, report.kept) == (1, 1)
    assert keys(files) == ["generated/b"]


def test_what_progress_raises_ends_the_cleaning(files: LocalStorage, root: Path) -> None:
    for name in "abc":
        put(files, root, f"generated/{name}", timedelta(days=2))

    def progress(seen: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cleaner.clean("generated", DAY, now=NOW, within=files, progress=progress)

    assert keys(files) == ["generated/b", "generated/c"]


def test_leftovers_of_killed_writers_go_too(files: LocalStorage, root: Path) -> None:
    files.put("a", b"1")
    (root / ".callboard" / "leftover").write_bytes(b"half")

    cleaner.clean("generated", DAY, within=files)

    assert list((root / ".callboard").iterdir()) == []
    assert keys(files) == ["a"]


def test_the_default_storage_is_cleaned_by_the_present_time(files: LocalStorage, root: Path) -> None:
    files.put("generated/new", b"1")
    files.put("generated/old", b"1")
    os.utime(root / "generated" / "old", (0, 0))

    with storage.default.replaced_by(files):
        assert cleaner.clean("generated", DAY).deleted == 1
    assert keys(files) == ["generated/new"]
