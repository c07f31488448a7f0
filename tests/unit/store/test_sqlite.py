"""What is SQLite's own: the file, what can go wrong with it, and how it is written."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callboard.errors import StoreUnavailable
from callboard.states import State, order
from callboard.store.base import AuditEntry, Change, Query
from callboard.store.sqlite import SQLiteStore
from callboard.store.sqlite import database as database_module
from callboard.store.sqlite.database import Connection, Database
from callboard.store.sqlite.filesystem import network_filesystem
from callboard.store.sqlite.records import Batch
from callboard.store.sqlite.schema import MIGRATIONS
from tests.closing import closing_all

PATIENCE = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "store.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., SQLiteStore]]:
    with closing_all(partial(SQLiteStore, path)) as open_it:
        yield open_it


def change(job_id: str, state: State = State.QUEUED, **known: Any) -> Change:
    return Change(job_id=job_id, order=order(0, state), state=state, at=known.pop("at", 1.0), **known)


def raw(path: Path, statement: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


# -- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3, 6, 8, 24, 31, 33, 96, 97, 130, 400, 513])
def test_a_batch_of_any_size_writes_each_record_once_with_its_story_and_tags(
    opened: Callable[..., SQLiteStore], jobs: int
) -> None:
    store = opened()
    store.write(
        [
            change(
                f"job-{n}", State.CANCELLED, event="it was cancelled", tags=("late",), enqueued_at=float(n)
            )
            for n in range(jobs)
        ]
    )
    store.write([change("alone", reason="it waits")])
    assert store.count_by_state() == {State.CANCELLED: jobs, State.QUEUED: 1}
    found = store.search(Query(tags=("late",), limit=1000)).records
    assert [record.job_id for record in found] == [f"job-{n}" for n in reversed(range(jobs))]
    for record in (store.get("job-0"), store.get(f"job-{jobs - 1}")):
        assert record is not None
        assert [event.text for event in record.events] == ["it was cancelled"]


def test_changes_that_say_more_sets_of_fields_than_are_kept_in_mind_are_all_written(
    opened: Callable[..., SQLiteStore],
) -> None:
    store = opened()
    fields = ("worker", "reason", "error", "error_type", "traceback", "progress_note", "fingerprint")
    sets: list[dict[str, Any]] = [
        {name: name for n, name in enumerate(fields) if number >> n & 1} for number in range(128)
    ]
    store.write([change(f"job-{number}", **said) for number, said in enumerate(sets)])
    for number, said in enumerate(sets):
        record = store.get(f"job-{number}")
        assert record is not None
        assert {name: getattr(record, name) for name in fields if getattr(record, name)} == said


# -- the file --------------------------------------------------------------------------------------------


def test_the_file_and_its_folder_are_made_on_first_use(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    store = opened()
    assert not path.parent.exists()
    assert store.get("a") is None
    assert raw(path, "PRAGMA journal_mode") == [("wal",)]
    assert raw(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_a_relative_path_stays_where_it_was_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore(Path("store.db"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.add("sent")
    store.close()
    assert (tmp_path / "store.db").exists()


def test_an_older_file_is_brought_up_to_date(
    path: Path, opened: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().write([change("a")])

    def add_a_column(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE records ADD COLUMN shoe_size INTEGER DEFAULT 43")

    monkeypatch.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, add_a_column))
    newer = opened()
    newer.write([change("a", State.RUNNING), change("b")])
    assert raw(path, "SELECT job_id, state, shoe_size FROM records ORDER BY seq") == [
        ("a", "running", 43),
        ("b", "queued", 43),
    ]
    assert raw(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


def test_a_step_that_fails_leaves_the_file_as_it_was(
    path: Path, opened: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().write([change("a")])

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE records")
        connection.execute("SELECT nonsense")

    monkeypatch.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, fail))
    with pytest.raises(StoreUnavailable, match="nonsense"):
        opened().get("a")
    assert raw(path, "SELECT job_id FROM records") == [("a",)]


def test_a_file_of_a_newer_callboard_is_refused(path: Path, opened: Callable[..., SQLiteStore]) -> None:
    opened().add("sent")
    raw(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreUnavailable, match="newer Callboard"):
        opened().get("a")


def test_another_programs_database_is_refused_and_left_alone(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    path.parent.mkdir()
    raw(path, "CREATE TABLE recipes (name)")
    with pytest.raises(StoreUnavailable, match="another program's"):
        opened().get("a")
    assert raw(path, "SELECT name FROM sqlite_master") == [("recipes",)]


def test_a_file_that_is_deleted_under_a_running_process_is_made_anew(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    store = opened()
    store.write([change("a")])
    version = store.control()
    for file in path.parent.iterdir():
        file.unlink()
    assert store.get("a") is None
    store.write([change("b")])
    assert raw(path, "SELECT job_id FROM records") == [("b",)]
    assert version is not None
    assert store.control(known_version=version.version) is not None, "a new file looks like the old one"

    path.unlink()
    store.write([change("c")])
    assert raw(path, "SELECT job_id FROM records") == [("c",)]


_FORKS = """
import os, sys, threading, time
from callboard.states import State
from callboard.store.base import Change, Query
from callboard.store.sqlite import SQLiteStore

store, memory = SQLiteStore(sys.argv[1]), SQLiteStore(":memory:")

def use(name):
    for n in range(20):
        store.write([
            Change(job_id=f"{name}-{n}-{m}", order=1, state=State.QUEUED, at=1.0) for m in range(10)
        ])
        assert store.get(f"{name}-{n}-9") is not None
        assert store.search(Query(limit=5)).records

def fork(act):
    if (pid := os.fork()) == 0:
        act()
        os._exit(0)
    return pid

def wait(*children):
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)

memory.add("before")
use("before")
"""


def _run_forks(script: str, path: Path) -> None:
    # Python 3.12 warns of any fork beside threads; that this one is safe is what is tested.
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKS + script, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=2 * PATIENCE,
        check=True,
    )
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_store_can_be_used_on_both_sides_of_a_fork(path: Path) -> None:
    script = """
busy = threading.Thread(target=use, args=("busy",))
busy.start()
children = []
for child in range(4):
    children.append(fork(lambda: use(f"child{child}")))
    use(f"parent{child}")
busy.join()
wait(*children)
assert store.count_by_state() == {State.QUEUED: 2000}
"""
    _run_forks(script, path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux alone")
def test_a_forked_child_has_none_of_its_parents_connections(path: Path) -> None:
    script = """
def check():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.islink(link)]
    assert not any(file.startswith(sys.argv[1]) for file in files), files
    use("child")

wait(fork(check))
"""
    _run_forks(script, path)


def test_a_fork_waits_for_a_thread_that_is_writing(path: Path) -> None:
    script = """
def write(a_store):
    with a_store._database.writing():
        inside.release()
        time.sleep(0.3)

def check():
    use("child")
    memory.add("after")
    assert memory.counters() == {"after": 1, "before": 1}

inside = threading.Semaphore(0)
threads = [threading.Thread(target=write, args=(each,)) for each in (store, memory)]
for thread in threads:
    thread.start()
    inside.acquire()
wait(fork(check))
for thread in threads:
    thread.join()
memory.add("after")
assert memory.counters() == {"after": 1, "before": 1}
"""
    _run_forks(script, path)


def test_connections_are_few_however_many_threads_read(opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    store.write([change("a")])
    threads = [threading.Thread(target=lambda: [store.get("a") for _ in range(20)]) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(store._database._idle) <= 4
    assert not store._database._reading


# -- what can go wrong -----------------------------------------------------------------------------------


def test_a_damaged_file_is_named_and_what_to_do_about_it(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"these are not the records you are looking for" * 100)
    with pytest.raises(StoreUnavailable, match=rf"{path} is damaged .*move it away"):
        opened().get("a")
    path.unlink()
    assert opened().get("a") is None


def test_damage_in_the_middle_of_the_file_is_noticed(path: Path, opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    for first in range(0, 2000, 500):
        store.write([change(f"{n}", payload="x" * 200) for n in range(first, first + 500)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StoreUnavailable, match="is damaged"):
        opened().search(Query(limit=1000))


def test_a_full_disk_is_named_and_passes(path: Path, opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    store.write([change("a")])
    writer = store._database._writer
    assert writer is not None
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk
    with pytest.raises(StoreUnavailable, match=rf"{path} can't grow, its disk is full: make room"):
        store.write([change(f"{n}", payload="x" * 1000) for n in range(100)])
    assert store.count_by_state() == {State.QUEUED: 1}
    writer.execute("PRAGMA max_page_count = 1000000")
    store.write([change("b")])
    assert store.count_by_state() == {State.QUEUED: 2}


_AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[2])
from callboard.errors import StoreUnavailable
from callboard.store.sqlite import SQLiteStore  # imported while it may still be read
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for act in (lambda store: store.add("sent"), lambda store: store.get("a")):
    store = SQLiteStore(sys.argv[1])
    try:
        act(store)
    except StoreUnavailable as error:
        print(error)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_may_not_be_written_is_named(path: Path, exists: bool) -> None:
    path.parent.mkdir()
    if exists:
        store = SQLiteStore(path)
        store.add("sent")
        store.close()
    for file in path.parent.iterdir():
        file.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(path), str(Path(__file__).parents[3])],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        path.parent.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith(f"the store {path} can't be written (")
        assert line.endswith("give this user the right to write the file and its folder")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SQLiteStore(tmp_path / "file" / "var" / "store.db")
    with pytest.raises(StoreUnavailable, match=r"store\.db can't be opened .*name another folder"):
        store.get("a")


def test_a_process_that_holds_the_turn_for_ever_costs_the_others_an_error(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    store = opened(patience=0.2)
    store.add("sent")
    with Path(f"{path}-lock").open() as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match=r"is locked: another process .*frozen"):
            store.add("sent")
        assert store.counters() == {"sent": 1}, "reading needs no turn"
    store.add("sent")
    assert store.counters() == {"sent": 2}


def test_a_program_that_knows_nothing_of_turns_is_waited_for_too(
    path: Path, opened: Callable[..., SQLiteStore]
) -> None:
    store = opened(patience=0.2)
    store.add("sent")
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="is locked"):
        store.add("sent")
    foreign.execute("ROLLBACK")
    foreign.close()
    store.add("sent")
    assert store.counters() == {"sent": 2}


def test_a_network_file_system_is_refused(
    path: Path, opened: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "network_filesystem", lambda folder: "nfs4")
    with pytest.raises(StoreUnavailable, match=r"network file system \(nfs4\).*name a local folder"):
        opened().get("a")
    assert not path.exists()


def test_the_innermost_mount_says_what_a_folder_lies_on(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\n"
        "server:/srv /mnt/srv nfs4 rw 0 0\n"
        "/dev/sdb /mnt/srv/local\\040disk ext4 rw 0 0\n"
        "me@host: /mnt/ssh fuse.sshfs rw 0 0\n"
        "//host/share /mnt/twice cifs rw 0 0\n"
        "tmpfs /mnt/twice tmpfs rw 0 0\n"
        "/dev/fuse /mnt/ntfs fuseblk rw 0 0\n"
    )
    expected = {
        "/var/lib": None,
        "/mnt/srv/var": "nfs4",
        "/mnt/srvother": None,
        "/mnt/srv/local disk/var": None,
        "/mnt/ssh": "fuse.sshfs",
        "/mnt/twice/var": None,
        "/mnt/ntfs": None,
    }
    assert {folder: network_filesystem(Path(folder), mounts) for folder in expected} == expected
    assert network_filesystem(Path("/mnt/srv"), tmp_path / "no such file") is None


# -- durability ------------------------------------------------------------------------------------------


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How carefully each transaction was committed: what `PRAGMA synchronous` was at its COMMIT."""
    seen: list[str] = []

    class Watched(Connection):
        before = 0

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self.before = self.total_changes
            if sql == "COMMIT" and self.total_changes > self.before:
                ((level,),) = super().execute("PRAGMA synchronous").fetchall()
                seen.append({1: "NORMAL", 2: "FULL"}[level])
            return super().execute(sql, *values)

    monkeypatch.setattr(database_module, "Connection", Watched)
    return seen


def test_what_must_outlive_a_power_loss_is_on_the_disk_when_the_call_returns(
    opened: Callable[..., SQLiteStore], commits: list[str]
) -> None:
    store = opened()
    store.control()
    for durable in (
        lambda: store.audit(AuditEntry(at=1.0, actor="ada", action="discard", target="a")),
        lambda: store.claim_key("tick", "one", ttl=60),
        lambda: store.cancel("a", at=1e12),
        lambda: store.forget_cancel("a"),
        lambda: store.pause("email.3"),
        lambda: store.resume("email.3"),
        lambda: store.set_number("barrier", 2, ttl=60),
        lambda: store.move_number("barrier", -1, least=1, ttl=60),
    ):
        commits.clear()
        durable()
        assert set(commits) == {"FULL"}, durable

    for quick in (
        lambda: store.write([change("a")]),
        lambda: store.claim_key("lease", "one", ttl=60, durable=False),
        lambda: store.add("sent"),
        lambda: store.put_result("r", b"", ttl=60),
    ):
        commits.clear()
        quick()
        assert set(commits) == {"NORMAL"}, quick


# -- the write path --------------------------------------------------------------------------------------


def test_the_usual_sequences_of_changes_need_no_look_at_the_record(
    opened: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()

    def fail(self: Batch, connection: sqlite3.Connection) -> None:
        raise AssertionError("a usual change took the slow way")

    monkeypatch.setattr(Batch, "write_exactly", fail)
    states = (State.QUEUED, State.RUNNING, State.SUCCEEDED)
    for job_id, batches in {
        "one by one": [[0], [1], [2]],
        "at once": [[0, 1, 2]],
        "two processes": [[0], [1, 2]],
        "the producer last": [[1, 2], [0]],
        "the producer in between": [[1], [0], [2]],
        "again": [[0], [1], [1, 2]],
    }.items():
        for batch in batches:
            store.write([change(job_id, states[n], worker=f"w{n}" if n else None) for n in batch])
        record = store.get(job_id)
        assert record is not None
        assert (record.state, record.worker) == (State.SUCCEEDED, "w2")


def test_a_batch_of_any_size_is_written_whole(opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    total = 0
    for size in (1, 3, 4, 5, 63, 64, 255, 257, 600):
        store.write(
            [
                change(f"{size}-{n}", event="sent", tags=("t",), payload=json.dumps({"n": n}))
                for n in range(size)
            ]
        )
        total += size
        assert store.count_by_state() == {State.QUEUED: total}
        record = store.get(f"{size}-{size - 1}")
        assert record is not None
        assert (record.payload, len(record.events)) == (json.dumps({"n": size - 1}), 1)


def test_a_history_without_end_is_cut_and_the_newest_still_wins(opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    for hop in range(400):
        store.write(
            [
                Change(
                    job_id="a", order=order(hop, State.RETRYING), state=State.RETRYING, at=hop, error=f"{hop}"
                ),
            ]
        )
        store.write(
            [
                Change(job_id="a", order=order(hop, State.RUNNING), state=State.RUNNING, at=hop, attempt=hop),
            ]
        )
    store.write(
        [
            Change(
                job_id="a", order=order(398, State.RUNNING), state=State.RUNNING, at=0, attempt=1, reason="r"
            )
        ]
    )
    record = store.get("a")
    assert record is not None
    assert (record.error, record.attempt, record.reason) == ("399", 399, "r")


def test_nothing_is_left_of_forgotten_jobs(path: Path, opened: Callable[..., SQLiteStore]) -> None:
    store = opened()
    store.write([change(f"{n}", State.SUCCEEDED, event="done", tags=("a", "b")) for n in range(20)])
    assert store.remove_ended(before=99) == 20
    for table in ("records", "events", "tags"):
        assert raw(path, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_store_in_memory_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore(":memory:")
    store.write([change("a")])
    store.close()
    assert list(tmp_path.iterdir()) == []


def _write(path: Path, name: str, batches: int) -> None:
    store = SQLiteStore(path)
    for n in range(batches):
        store.write([change(f"{name}-{n}-{m}") for m in range(20)])
    store.close()


def test_processes_take_turns_at_writing(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write, args=(path, f"p{n}", 50)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert raw(path, "SELECT count(*) FROM records") == [(3000,)]
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_database_that_nobody_uses_opens_nothing(path: Path) -> None:
    Database(path).close()
    assert not path.parent.exists()
