"""Objects appear whole or not at all, and nothing outside the root is read or written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from callboard.errors import CallboardError, MissingExtra, Permanent, SettingsError
from services import storage
from services.storage import (
    CloudStorage,
    InvalidKey,
    LocalStorage,
    ObjectNotFound,
    ObjectTooLarge,
    Storage,
    StorageUnavailable,
    open_storage,
)

BAD_KEYS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/./b",
    "..",
    "a//b",
    "a/",
    "%2e%2e/x",
    "..%2fx",
    "%252e%252e/x",
    "a%00b",
    "a\0b",
    "a\nb",
    "..\\x",
    "C:\\x",
    "\udc80",
    "a" * 300,
    ".callboard/x",
]


@pytest.fixture(params=["local", "cloud"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return LocalStorage(tmp_path / "root")
    return CloudStorage(pytest.importorskip("obstore.store").MemoryStore(), name="memory")


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


def everything_below(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)) for path in found}


def test_what_was_put_is_read_back_whole_and_in_chunks(files: Storage) -> None:
    data = os.urandom(1_000_000)

    assert files.put("reports/2026/may.bin", data) == 1_000_000

    assert files.read("reports/2026/may.bin") == data
    assert b"".join(files.stream("reports/2026/may.bin")) == data
    assert files.stat("reports/2026/may.bin").size == 1_000_000
    assert files.exists("reports/2026/may.bin")
    assert not files.exists("reports/2026")
    assert abs(datetime.now(UTC) - files.stat("reports/2026/may.bin").modified) < timedelta(minutes=5)


def test_chunks_become_one_object_in_place_of_the_old_one(files: Storage) -> None:
    files.put("a.txt", b"a much longer older object")

    assert files.put("a.txt", iter([b"one ", b"two"])) == 7

    assert files.read("a.txt") == b"one two"


@pytest.mark.parametrize("older", [None, b"older"])
def test_a_writer_that_fails_leaves_what_was_there(files: Storage, older: bytes | None) -> None:
    if older:
        files.put("a/b.txt", older)

    def chunks() -> Iterator[bytes]:
        yield b"x" * 1_000_000
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        files.put("a/b.txt", chunks())

    assert [file.key for file in files.list()] == (["a/b.txt"] if older else [])
    if older:
        assert files.read("a/b.txt") == older


def test_an_object_is_invisible_until_its_block_ends(files: Storage) -> None:
    with files.open_write("slow.txt") as out:
        out.write(b"half")
        assert not files.exists("slow.txt")
        assert list(files.list()) == []

    assert files.read("slow.txt") == b"half"


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_could_lead_elsewhere_is_refused(files: Storage, tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_text("outside")
    files.put("inside", b"")
    before = everything_below(tmp_path)

    for act in (
        lambda: files.put(key, b"evil"),
        lambda: files.read(key),
        lambda: files.stat(key),
        lambda: files.exists(key),
        lambda: files.delete(key),
    ):
        with pytest.raises(InvalidKey) as raised:
            act()
        assert isinstance(raised.value, Permanent)
    if key and not key.endswith("a/"):
        with pytest.raises(InvalidKey):
            list(files.list(key))

    assert everything_below(tmp_path) == before
    assert (tmp_path / "x").read_text() == "outside"


@pytest.mark.parametrize(
    "key", ["caf\u00e9/r\u00e9sum\u00e9.pdf", "a b.txt", "100%.txt", "a#b?c*d.txt", "..a/b..", "~x", "-rf"]
)
def test_an_unusual_but_harmless_key_is_kept_as_it_is(files: Storage, key: str) -> None:
    files.put(key, b"data")

    assert files.read(key) == b"data"
    assert [file.key for file in files.list()] == [key]


def test_a_folder_lists_what_is_in_it_and_nothing_beside_it(files: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        files.put(key, b"12345")

    assert {(file.key, file.size) for file in files.list("a")} == {("a/1", 5), ("a/b/2", 5)}
    assert {file.key for file in files.list("a/")} == {"a/1", "a/b/2"}
    assert {file.key for file in files.list()} == {"a/1", "a/b/2", "ab/3", "4"}
    assert list(files.list("nothing/here")) == []


def test_a_deleted_object_is_gone_and_deleting_it_again_says_so(files: Storage) -> None:
    files.put("a/b/c", b"1")

    assert files.delete("a/b/c")
    assert not files.delete("a/b/c")
    assert not files.exists("a/b/c")
    with pytest.raises(ObjectNotFound, match="no object 'a/b/c'"):
        files.read("a/b/c")
    with pytest.raises(ObjectNotFound):
        files.stat("a/b/c")


def test_a_read_with_a_limit_refuses_a_larger_object(files: Storage) -> None:
    files.put("big", b"12345")

    assert files.read("big", limit=5) == b"12345"
    with pytest.raises(ObjectTooLarge, match="5 bytes, over the limit of 4"):
        files.read("big", limit=4)


def test_nothing_goes_through_a_symbolic_link(local: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    local.put("inside", b"")
    root = tmp_path / "root"
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")

    for key in ("folder/secret", "file", "folder/new"):
        for act in (local.read, local.stat, local.delete, lambda key: local.put(key, b"evil")):
            with pytest.raises(InvalidKey, match="symbolic link"):
                act(key)
    with pytest.raises(InvalidKey, match="symbolic link"):
        list(local.list("folder"))

    assert [file.key for file in local.list()] == ["inside"]
    assert everything_below(outside) == {"secret"}
    assert (outside / "secret").read_text() == "secret"


def test_a_link_in_place_of_the_hidden_folder_is_refused(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".callboard").symlink_to(tmp_path / "outside")

    with pytest.raises(InvalidKey):
        local.put("a", b"1")

    assert everything_below(tmp_path / "outside") == set()


def test_a_pipe_or_a_folder_is_no_object(local: LocalStorage, tmp_path: Path) -> None:
    local.put("folder/a", b"1")
    os.mkfifo(tmp_path / "root" / "pipe")

    for key in ("pipe", "folder"):
        with pytest.raises(ObjectNotFound):
            local.read(key)
        assert not local.exists(key)
        assert not local.delete(key)
        with pytest.raises(InvalidKey, match="a folder or a device has this name"):
            local.put(key, b"1")
    with pytest.raises(InvalidKey, match="'a' is a file, not a folder"):
        local.put("folder/a/b", b"1")
    assert not local.exists("folder/a/b")


KILLED_WRITER = """
import sys
from pathlib import Path
from services.storage import LocalStorage
with LocalStorage(Path(sys.argv[1])).open_write("reports/may.csv") as out:
    out.write(b"half of it")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_visible_and_its_leftover_is_swept(
    local: LocalStorage, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout and writer.stdout.readline() == b"writing\n"
        assert local.sweep() == 0, "a live writer's file is not swept"
        writer.send_signal(signal.SIGKILL)
    assert len(everything_below(root)) == 1

    assert not local.exists("reports/may.csv")
    assert list(local.list()) == []
    assert local.sweep() == 1
    assert everything_below(root) == set()


def test_a_finished_or_failed_write_leaves_no_leftover(local: LocalStorage, tmp_path: Path) -> None:
    local.put("a", b"1")
    with pytest.raises(RuntimeError), local.open_write("b"):
        raise RuntimeError

    assert everything_below(tmp_path / "root") == {"a"}
    assert local.sweep() == 0


def test_folders_that_a_delete_empties_go_too(local: LocalStorage, tmp_path: Path) -> None:
    local.put("a/b/c", b"1")
    local.put("a/d", b"1")

    local.delete("a/b/c")

    assert not (tmp_path / "root" / "a" / "b").exists()
    assert local.exists("a/d")


def test_a_folder_that_vanishes_during_a_write_is_made_again(local: LocalStorage) -> None:
    local.put("a/old", b"1")
    with local.open_write("a/new") as out:
        out.write(b"2")
        local.delete("a/old")  # and with it the empty folder

    assert local.read("a/new") == b"2"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_gives_one_clear_sentence(
    local: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir(mode=0o500)

    with pytest.raises(StorageUnavailable, match=r"can't write 'a' in .*: Permission denied"):
        local.put("a", b"1")


def test_a_root_that_is_a_file_gives_one_clear_sentence(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")

    with pytest.raises(StorageUnavailable, match=r"can't write 'a' in .*: File exists"):
        local.put("a", b"1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_permanent_error(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnavailable, match="No space left on device") as raised:  # noqa: SIM117
        with local.open_write("a") as out:
            with Path("/dev/full").open("wb", buffering=0) as full:
                monkeypatch.setattr(out, "_file", full)
                out.write(b"1")

    assert not isinstance(raised.value, Permanent)
    assert not local.exists("a")


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:var/storage", Path.cwd() / "var/storage"),
        ("file:/srv/x", "/srv/x"),
        ("file:///srv/x", "/srv/x"),
    ],
)
def test_a_file_url_names_a_relative_or_absolute_folder(url: str, folder: object) -> None:
    assert str(open_storage(url)) == str(folder)


@pytest.mark.parametrize(
    "url", ["", "var/storage", "file:", "file://host/x", "https://example.org/x", "ftp://x"]
)
def test_a_url_of_another_kind_is_refused_with_the_ones_that_work(url: str) -> None:
    with pytest.raises(SettingsError, match=r"CALLBOARD_STORAGE_URL.*s3://"):
        open_storage(url)


@pytest.mark.parametrize("url", ["s3://", "s3://id:secret@bucket", "az://container"])
def test_a_malformed_cloud_url_is_refused_without_showing_secrets(url: str) -> None:
    pytest.importorskip("obstore")

    with pytest.raises(SettingsError, match="CALLBOARD_STORAGE_URL") as raised:
        open_storage(url)
    assert "secret" not in str(raised.value)


def test_a_cloud_storage_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)

    with pytest.raises(MissingExtra, match=r"callboard\[storage\]"):
        open_storage("s3://bucket")


def test_a_bucket_that_cant_be_reached_is_no_permanent_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = pytest.importorskip("obstore.store").S3Store(
        "bucket",
        endpoint="http://127.0.0.1:1",
        access_key_id="x",
        secret_access_key="y",
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )

    with pytest.raises(StorageUnavailable, match=r"can't write 'a' in s3://bucket: \S") as raised:
        CloudStorage(store, name="s3://bucket").put("a", b"1")
    assert not isinstance(raised.value, Permanent)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_that_it_cant_use_its_parents_cloud_storage() -> None:
    files = CloudStorage(pytest.importorskip("obstore.store").MemoryStore(), name="memory")
    files.put("a", b"1")

    child = os.fork()
    if child == 0:
        try:
            files.read("a")
        except StorageUnavailable as error:
            os._exit(7 if "forked" in str(error) else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_functions_use_the_storage_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_STORAGE_URL", f"file:{tmp_path}")
    storage.default.forget()
    try:
        storage.put("a/b", b"1")
        assert (tmp_path / "a" / "b").read_bytes() == b"1"
        assert storage.read("a/b") == b"1"
        assert [file.key for file in storage.list("a")] == ["a/b"]
        assert storage.exists("a/b") and storage.stat("a/b").size == 1 and storage.delete("a/b")
    finally:
        storage.default.forget()


def test_an_invalid_key_is_one_of_callboards_errors() -> None:
    assert issubclass(InvalidKey, CallboardError)
