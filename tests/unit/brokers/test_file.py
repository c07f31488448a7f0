"""What only the file driver does; the rest is in tests/conformance/test_drivers.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callboard.brokers.driver import Delivery, Intake, IntakeOptions, Outgoing, PutError
from callboard.brokers.file import FileDriver, bells, messages, schema, workers
from callboard.brokers.file import intake as intake_module
from callboard.brokers.file.intake import FileIntake
from callboard.errors import BrokerUnavailable

PATIENCE = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def driver(folder: Path) -> Iterator[FileDriver]:
    driver = FileDriver(folder)
    yield driver
    driver.close()


def message(number: int, queue: str = "mail.high", due: float | None = None) -> Outgoing:
    return Outgoing(queue, b"%d" % number, f"job-{number}", b"", due)


def options(*queues: str, worker: str = "w1", budget: int = 1000) -> IntakeOptions:
    return IntakeOptions(queues=queues or ("mail.high",), budget=budget, worker=worker)


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.body) for delivery in deliveries]


def ask(driver: FileDriver, sql: str, *, durable: bool = True) -> list[tuple[object, ...]]:
    """Ask the connection by which the driver writes."""
    return driver.writer.run(
        lambda connection: connection.execute(sql).fetchall(),
        durable=durable,
        until=time.monotonic() + PATIENCE,
    )


# --- the file


def test_nothing_is_made_before_it_is_needed(folder: Path) -> None:
    driver = FileDriver(folder)
    driver.declare("mail.high")
    driver.open_intake(options()).close()
    driver.close()
    assert not folder.exists()


def test_what_is_put_is_synchronized_fully_and_what_is_claimed_is_not(driver: FileDriver) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    assert ask(driver, "PRAGMA synchronous") == [(2,)]
    assert ask(driver, "PRAGMA synchronous", durable=False) == [(1,)]
    assert ask(driver, "PRAGMA synchronous") == [(2,)]
    assert ask(driver, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("act", ["put", "move"])
def test_puts_and_moves_are_synchronized_fully(
    driver: FileDriver, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = driver.open_intake(options())
    driver.put([message(1)], deadline=PATIENCE)
    (delivery,) = intake.fetch(1, PATIENCE)
    seen: list[int] = []
    put = messages.put

    def look(connection: sqlite3.Connection, *arguments: object) -> None:
        seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        put(connection, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(messages, "put", look)
    if act == "put":
        driver.put([message(2)], deadline=PATIENCE)
    else:
        intake.move(delivery, message(2))
    assert seen == [2]


def test_a_put_and_a_claim_in_one_transaction_are_synchronized_fully(
    driver: FileDriver, folder: Path
) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    seen: list[int] = []

    def look(connection: sqlite3.Connection) -> None:
        seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])

    def run(durable: bool) -> None:
        driver.writer.run(look, durable=durable, until=time.monotonic() + PATIENCE)

    gather(driver, folder, [lambda: run(False), lambda: run(True), lambda: run(False)])
    assert seen == [2, 2, 2]


def test_namespaces_keep_apart(folder: Path) -> None:
    plain, other = FileDriver(folder), FileDriver(folder, namespace="other")
    plain.put([message(1)], deadline=PATIENCE)
    other.put([message(2)], deadline=PATIENCE)
    assert numbers(plain.open_intake(options()).fetch(10, 0.0)) == [1]
    assert numbers(other.open_intake(options()).fetch(10, 0.0)) == [2]
    plain.close()
    other.close()


def test_the_log_does_not_grow_without_end(driver: FileDriver, folder: Path) -> None:
    for _ in range(30):
        driver.put([Outgoing("mail.high", bytes(2000), "job") for _ in range(500)], deadline=PATIENCE)
    written = 30 * 500 * 2000
    assert (folder / "queue.db-wal").stat().st_size < written / 3


def test_the_file_shrinks_when_it_has_been_emptied(driver: FileDriver, folder: Path) -> None:
    driver.put([Outgoing("mail.high", bytes(4000), "job") for _ in range(10_000)], deadline=PATIENCE)
    driver.put([message(1, "mail.low")], deadline=PATIENCE)
    driver.purge("mail.high")
    assert (folder / "queue.db").stat().st_size > 20_000_000
    until = time.monotonic() + PATIENCE
    driver.writer.shrink(until=until)
    assert (folder / "queue.db").stat().st_size < 1_000_000
    assert numbers(driver.open_intake(options("mail.low")).fetch(10, 0.0)) == [1]


def test_a_waiting_worker_shrinks_the_file(driver: FileDriver, folder: Path) -> None:
    driver.put([Outgoing("mail.high", bytes(4000), "job") for _ in range(6_000)], deadline=PATIENCE)
    driver.purge("mail.high")
    intake = driver.open_intake(options())
    end = time.monotonic() + PATIENCE
    while ask(driver, "PRAGMA page_count")[0][0] > 250:  # type: ignore[operator]
        assert time.monotonic() < end
        intake.fetch(1, 1.5)


def test_a_file_that_was_removed_is_made_again(driver: FileDriver, folder: Path) -> None:
    intake = driver.open_intake(options())
    driver.put([message(1), message(2)], deadline=PATIENCE)
    (held,) = intake.fetch(1, PATIENCE)
    for suffix in ("", "-wal", "-shm"):
        (folder / f"queue.db{suffix}").unlink()
    driver.put([message(3)], deadline=PATIENCE)
    assert numbers(intake.fetch(10, PATIENCE)) == [3]
    assert not intake.holds(held)
    assert driver.counts(["mail.high"])["mail.high"].claimed == 1


def test_a_claim_over_several_queues_takes_what_it_returns_and_nothing_else(driver: FileDriver) -> None:
    queues = ("mail.critical", "mail.high", "mail.medium")
    driver.put([message(n, queues[n % 3]) for n in range(60)], deadline=PATIENCE)
    other = driver.open_intake(options("mail.high", worker="w0"))
    other.fetch(5, PATIENCE)
    intake = driver.open_intake(options(*queues))
    fetched = intake.fetch(17, PATIENCE)
    number = ask(driver, "SELECT number FROM workers WHERE name = 'w1'")[0][0]
    claimed = ask(driver, f"SELECT body FROM messages WHERE claim = {number}")
    assert len(fetched) == 17
    assert {(delivery.body,) for delivery in fetched} == set(claimed)
    intake.close()
    other.close()


# --- what can't be used says so in one sentence


def refusal(driver: FileDriver) -> str:
    """What a send, a question and a worker say alike."""
    outgoing = [message(1)]
    with pytest.raises(PutError) as put:
        driver.put(outgoing, deadline=0.3)
    assert put.value.not_queued == outgoing
    assert put.value.unknown == []
    with pytest.raises(BrokerUnavailable) as ping:
        driver.ping()
    assert str(ping.value) == str(put.value)
    with pytest.raises(BrokerUnavailable):
        driver.counts(["mail.high"])
    assert driver.open_intake(options()).fetch(1, 0.05) == []
    return str(put.value)


def test_a_file_where_the_folder_should_be_is_named(folder: Path, driver: FileDriver) -> None:
    folder.write_text("")
    assert refusal(driver) == f"{folder}/queue.lock can't be used: not a directory"


def test_a_folder_that_can_not_be_made_is_named(folder: Path) -> None:
    folder.write_text("")
    driver = FileDriver(folder / "below" / "it")
    assert refusal(driver) == f"{folder}/below/it/queue.lock can't be used: not a directory"
    driver.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_is_named(folder: Path, driver: FileDriver) -> None:
    folder.mkdir(mode=0o500)
    assert refusal(driver) == f"{folder}/queue.lock can't be used: permission denied"


def test_a_database_that_can_not_be_written_is_named(folder: Path, driver: FileDriver) -> None:
    driver.ping()
    connection = sqlite3.connect(f"file:{folder}/queue.db?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("DELETE FROM messages")
    connection.close()
    assert schema.explain(caught.value, folder / "queue.db") == (
        f"{folder}/queue.db can't be written: make it and its folder writable for this user"
    )


def test_a_damaged_file_is_named(folder: Path, driver: FileDriver) -> None:
    folder.mkdir()
    (folder / "queue.db").write_bytes(b"not a database " * 1000)
    assert refusal(driver) == (
        f"{folder}/queue.db is damaged or is no SQLite file: move it away, and restore it from a backup"
    )


def test_somebody_elses_database_is_left_alone(folder: Path, driver: FileDriver) -> None:
    folder.mkdir()
    connection = sqlite3.connect(folder / "queue.db")
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    assert refusal(driver) == (
        f"{folder}/queue.db is an SQLite file, but not one of Callboard's: choose another folder"
    )


def test_the_file_of_a_newer_callboard_is_left_alone(folder: Path, driver: FileDriver) -> None:
    driver.ping()
    driver.close()
    connection = sqlite3.connect(folder / "queue.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    newer = FileDriver(folder)
    assert refusal(newer) == (
        f"{folder}/queue.db has version 99, and this Callboard knows only 1: use the Callboard that made it"
    )
    newer.close()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_network_file_systems_are_refused(
    folder: Path, driver: FileDriver, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_file_system", lambda _: kind)
    assert refusal(driver) == (
        f"{folder} is on a network file system ({kind}), where locks can't be trusted: choose a local disk"
    )


def test_the_file_system_of_a_folder_is_known(tmp_path: Path) -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("only Linux says")
    assert schema._file_system(Path("/proc")) == "proc"
    assert schema._file_system(tmp_path) not in (None, "proc")


def test_a_full_disk_is_told_and_ends_when_there_is_room(driver: FileDriver, folder: Path) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    pages = ask(driver, "PRAGMA page_count")[0][0]
    ask(driver, f"PRAGMA max_page_count = {pages}")
    large = [Outgoing("mail.high", bytes(100_000), "large")]
    with pytest.raises(
        PutError, match=f"^the disk that holds {folder}/queue.db is full: make room$"
    ) as caught:
        driver.put(large, deadline=PATIENCE)
    assert caught.value.not_queued == large
    ask(driver, "PRAGMA max_page_count = 1000000")
    driver.put([message(2)], deadline=PATIENCE)
    assert numbers(driver.open_intake(options()).fetch(10, 0.0)) == [1, 2]


def test_a_disk_that_is_full_for_other_files_is_told_alike(folder: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", f"{folder}/workers/129.new")
    assert (
        schema.explain(error, folder / "queue.db")
        == f"the disk that holds {folder}/queue.db is full: make room"
    )


def test_a_frozen_writer_holds_up_a_send_no_longer_than_its_deadline(
    driver: FileDriver, folder: Path
) -> None:
    driver.ping()
    with (folder / "queue.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outgoing = [message(1)]
        start = time.monotonic()
        with pytest.raises(PutError, match="was busy for too long") as caught:
            driver.put(outgoing, deadline=0.3)
        assert 0.25 <= time.monotonic() - start < 10
        assert caught.value.not_queued == outgoing
    driver.put([message(2)], deadline=PATIENCE)
    assert numbers(driver.open_intake(options()).fetch(10, 0.0)) == [2]


def test_another_program_that_writes_is_waited_for(driver: FileDriver, folder: Path) -> None:
    driver.ping()
    shell = sqlite3.connect(folder / "queue.db", isolation_level=None, check_same_thread=False)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(PutError, match="locked by another program"):
        driver.put([message(1)], deadline=0.2)
    done = threading.Timer(0.2, shell.execute, ["COMMIT"])
    done.start()
    driver.put([message(2)], deadline=PATIENCE)
    done.join()
    shell.close()
    assert numbers(driver.open_intake(options()).fetch(10, 0.0)) == [2]


# --- many at once


def gather(driver: FileDriver, folder: Path, acts: list[Callable[[], object]]) -> list[BaseException | None]:
    """Let these acts wait for one lock, one after the other, and then run."""
    errors: list[BaseException | None] = [None] * len(acts)

    def run(place: int, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            errors[place] = error

    threads = [threading.Thread(target=run, args=[place, act]) for place, act in enumerate(acts)]
    with (folder / "queue.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for place, thread in enumerate(threads):
            thread.start()
            wait_until(lambda: len(driver.writer._queue) == place and driver.writer._leader is not None)  # noqa: B023
    for thread in threads:
        thread.join(PATIENCE)
    return errors


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def commits(driver: FileDriver) -> list[str]:
    """Fills up with the driver's commits."""
    seen: list[str] = []
    connection = driver.writer._connection
    assert connection is not None
    connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    return seen


def test_sends_that_wait_together_are_committed_together(driver: FileDriver, folder: Path) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    seen = commits(driver)
    acts: list[Callable[[], object]] = [
        lambda n=n: driver.put([message(n)], deadline=PATIENCE)  # type: ignore[misc]
        for n in range(1, 9)
    ]
    assert gather(driver, folder, acts) == [None] * 8
    assert len(seen) == 1
    assert numbers(driver.open_intake(options()).fetch(100, 0.0)) == list(range(9))


def test_a_bad_message_fails_alone(driver: FileDriver, folder: Path) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    bad = Outgoing("mail.high", object(), "bad")  # type: ignore[arg-type]
    acts: list[Callable[[], object]] = [
        lambda: driver.put([message(1)], deadline=PATIENCE),
        lambda: driver.put([message(2), bad], deadline=PATIENCE),
        lambda: driver.put([message(3)], deadline=PATIENCE),
    ]
    errors = gather(driver, folder, acts)
    assert [error is None for error in errors] == [True, False, True]
    assert numbers(driver.open_intake(options()).fetch(100, 0.0)) == [0, 1, 3]


def test_who_waits_behind_a_send_that_gives_up_takes_its_place(driver: FileDriver, folder: Path) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    first_failed = threading.Event()

    def give_up() -> None:
        with pytest.raises(PutError):
            driver.put([message(1)], deadline=0.2)
        first_failed.set()

    with (folder / "queue.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = threading.Thread(target=give_up)
        first.start()
        wait_until(lambda: driver.writer._leader is not None)
        second = threading.Thread(target=driver.put, args=[[message(2)]], kwargs={"deadline": PATIENCE})
        second.start()
        assert first_failed.wait(PATIENCE)
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert numbers(driver.open_intake(options()).fetch(100, 0.0)) == [0, 2]


def test_who_gives_up_behind_another_is_not_queued(driver: FileDriver, folder: Path) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    with (folder / "queue.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = threading.Thread(target=driver.put, args=[[message(1)]], kwargs={"deadline": PATIENCE})
        first.start()
        wait_until(lambda: driver.writer._leader is not None)
        outgoing = [message(2)]
        with pytest.raises(PutError) as caught:
            driver.put(outgoing, deadline=0.1)
        assert caught.value.not_queued == outgoing
    first.join(PATIENCE)
    assert numbers(driver.open_intake(options()).fetch(100, 0.0)) == [0, 1]


def test_an_exception_from_outside_leaves_the_next_sends_alone(driver: FileDriver) -> None:
    driver.ping()

    class TimeLimit(BaseException):
        pass

    def interrupted(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO queues (name) VALUES ('half')")
        raise TimeLimit

    with pytest.raises(TimeLimit):
        driver.writer.run(interrupted, durable=True, until=time.monotonic() + PATIENCE)
    driver.put([message(1)], deadline=PATIENCE)
    assert driver.queues() == ["mail.high"]


def test_a_time_limit_that_strikes_a_waiting_send_lets_the_others_on(
    driver: FileDriver, folder: Path
) -> None:
    class TimeLimit(BaseException):
        pass

    driver.put([message(0)], deadline=PATIENCE)
    ends: dict[int, type[BaseException] | None] = {}

    def send(number: int, deadline: float) -> None:
        try:
            driver.put([message(number)], deadline=deadline)
        except BaseException as error:
            ends[number] = type(error)
        else:
            ends[number] = None

    threads = [
        threading.Thread(target=send, args=[number, deadline])
        for number, deadline in [(1, 0.5), (2, PATIENCE), (3, PATIENCE)]
    ]
    with (folder / "queue.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for place, thread in enumerate(threads):
            thread.start()
            wait_until(lambda: len(driver.writer._queue) == place and driver.writer._leader is not None)  # noqa: B023
        waiting = ctypes.c_ulong(threads[1].ident or 0)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(waiting, ctypes.py_object(TimeLimit)) == 1
        threads[0].join(PATIENCE)
        threads[1].join(PATIENCE)
    threads[2].join(PATIENCE)
    assert ends == {1: PutError, 2: TimeLimit, 3: None}
    assert numbers(driver.open_intake(options()).fetch(10, 0.0)) == [0, 3]


# --- order and size


def steps(driver: FileDriver, act: Callable[[], object]) -> int:
    """How much SQLite does, in hundreds of the steps of its machine."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    connection = driver.writer._connection
    assert connection is not None
    connection.set_progress_handler(step, 100)
    try:
        act()
    finally:
        connection.set_progress_handler(None, 0)
    return count


def test_neither_a_backlog_nor_what_is_due_later_makes_a_claim_slower(driver: FileDriver) -> None:
    intake = driver.open_intake(options("mail.high", "mail.low"))
    driver.put([message(n) for n in range(200)], deadline=PATIENCE)
    intake.fetch(1, PATIENCE)
    few = steps(driver, lambda: intake.fetch(50, PATIENCE))
    far = time.time() + 86_400
    for queue in ("mail.high", "mail.low"):
        driver.put([message(n, queue) for n in range(10_000)], deadline=PATIENCE)
        driver.put([message(n, queue, far + n) for n in range(10_000)], deadline=PATIENCE)
    many = steps(driver, lambda: intake.fetch(50, PATIENCE))
    assert few > 0
    assert many <= few * 2 + 5


def test_messages_keep_their_order_when_the_clock_steps_back(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.put([message(0), message(1)], deadline=PATIENCE)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    driver.put([message(2)], deadline=PATIENCE)
    driver.put([message(3), message(4)], deadline=PATIENCE)
    assert numbers(driver.open_intake(options()).fetch(100, 0.0)) == [0, 1, 2, 3, 4]


def test_a_purge_reaches_what_was_put_before_the_clock_stepped_back(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.put([message(0), message(1)], deadline=PATIENCE)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert driver.purge("mail.high") == 2


def test_many_may_be_due_at_the_same_moment(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    moment = real() + 3600
    driver.put([message(n, due=moment) for n in range(1000)], deadline=PATIENCE)
    driver.put([message(n, due=moment) for n in range(1000, 1200)], deadline=PATIENCE)
    intake = driver.open_intake(options(budget=2000))
    assert intake.fetch(300, 0.0) == []
    monkeypatch.setattr(time, "time", lambda: real() + 3601)
    found: list[int] = []
    end = time.monotonic() + PATIENCE
    while len(found) < 1200 and time.monotonic() < end:
        found += numbers(intake.fetch(300, 1.0))
    assert found == list(range(1200))


def test_what_is_due_counts_as_ready_before_any_worker_looks(driver: FileDriver) -> None:
    driver.put([message(1, due=time.time() + 0.1), message(2, due=time.time() + 3600)], deadline=PATIENCE)
    wait_until(lambda: driver.counts(["mail.high"])["mail.high"].ready == 1)
    assert driver.counts(["mail.high"])["mail.high"].delayed == 1


# --- where a job is


@pytest.mark.parametrize("job_id", ["job-x", "018f0000-0000-7000-8000-000000000001", "now"])
def test_a_job_is_found_wherever_it_is(driver: FileDriver, job_id: str) -> None:
    if job_id == "now":
        stamp = int(time.time() * 1000) << 80
        job_id = str(uuid.UUID(int=stamp | 7 << 76 | 2 << 62 | 5))
    assert driver.locate(job_id) is None
    due = time.time() + 3600
    driver.put([message(n) for n in range(10)], deadline=PATIENCE)
    driver.put([Outgoing("mail.low", b"", job_id, b"", due)], deadline=PATIENCE)
    found = driver.locate(job_id)
    assert found is not None
    assert (found.queue, found.claimed_by) == ("mail.low", None)
    assert found.due == pytest.approx(due, abs=0.001)
    driver.purge("mail.low")

    driver.put([Outgoing("mail.medium", b"", job_id)], deadline=PATIENCE)
    found = driver.locate(job_id)
    assert found is not None
    assert (found.queue, found.claimed_by, found.due) == ("mail.medium", None, None)

    intake = driver.open_intake(options("mail.medium", worker="the-worker"))
    (delivery,) = intake.fetch(1, PATIENCE)
    found = driver.locate(job_id)
    assert found is not None
    assert (found.queue, found.claimed_by) == ("mail.medium", "the-worker")
    intake.ack(delivery)
    assert intake.flush(PATIENCE)
    assert driver.locate(job_id) is None


# --- workers


def lock_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "workers").glob("*.*"))


def test_a_worker_that_leaves_leaves_nothing_behind(driver: FileDriver, folder: Path) -> None:
    intake = driver.open_intake(options())
    intake.fetch(1, 0.0)
    assert len(lock_files(folder)) == 2
    intake.close()
    assert lock_files(folder) == []
    assert driver.counts(["mail.high"])["mail.high"].consumers == 0


def vanish(intake: Intake) -> None:
    """What the kernel does when a worker is killed."""
    assert isinstance(intake, FileIntake)
    assert intake._registration is not None
    intake._driver.forget(intake)
    intake._registration.lock.close()


def test_a_worker_that_vanishes_is_rescued_and_cleared_away(driver: FileDriver, folder: Path) -> None:
    driver.put([message(n) for n in range(5)], deadline=PATIENCE)
    gone = driver.open_intake(options(worker="gone"))
    assert numbers(gone.fetch(3, PATIENCE)) == [0, 1, 2]
    vanish(gone)
    other = driver.open_intake(options(worker="other"))
    deliveries = other.fetch(10, PATIENCE)
    assert numbers(deliveries) == [0, 1, 2, 3, 4]
    assert [delivery.redelivered for delivery in deliveries] == [True, True, True, False, False]
    assert len(lock_files(folder)) == 2
    gone.close()
    assert all(other.holds(delivery) for delivery in deliveries)
    assert driver.counts(["mail.high"])["mail.high"].claimed == 5


def test_a_late_ack_of_a_rescued_claim_is_dropped(driver: FileDriver) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    late = driver.open_intake(options(worker="late"))
    (stale,) = late.fetch(1, PATIENCE)
    vanish(late)
    other = driver.open_intake(options(worker="other"))
    (held,) = other.fetch(1, PATIENCE)
    late.ack(stale)
    assert late.flush(PATIENCE)
    assert driver.counts(["mail.high"])["mail.high"].claimed == 1
    assert other.holds(held)


def test_a_late_move_of_a_rescued_claim_is_refused(driver: FileDriver) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    late = driver.open_intake(options(worker="late"))
    (stale,) = late.fetch(1, PATIENCE)
    vanish(late)
    driver.open_intake(options(worker="other")).fetch(1, PATIENCE)
    outgoing = message(2, "mail.low")
    with pytest.raises(PutError, match="the claim is gone") as caught:
        late.move(stale, outgoing)
    assert caught.value.not_queued == [outgoing]
    assert not late.holds(stale)
    assert driver.counts(["mail.low"])["mail.low"].ready == 0


def test_a_live_worker_keeps_its_claims_though_its_files_are_deleted(
    driver: FileDriver, folder: Path
) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    intake = driver.open_intake(options())
    (held,) = intake.fetch(1, PATIENCE)
    for path in (folder / "workers").iterdir():
        path.unlink()
    intake.fetch(1, 0.5)
    other = driver.open_intake(options(worker="other"))
    assert other.fetch(1, 0.3) == []
    assert intake.holds(held)


def test_a_transaction_that_fails_costs_no_claim(
    driver: FileDriver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "_TRANSACTION", 0.2)
    driver.put([message(1), message(2)], deadline=PATIENCE)
    intake = driver.open_intake(options())
    held = intake.fetch(2, PATIENCE)
    shell = sqlite3.connect(folder / "queue.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    assert intake.fetch(1, 0.5) == []
    intake.ack(held[0])
    assert not intake.flush(0.3)
    shell.execute("COMMIT")
    shell.close()
    assert intake.flush(PATIENCE)
    assert intake.holds(held[1])
    counts = driver.counts(["mail.high"])["mail.high"]
    assert (counts.ready, counts.claimed, counts.consumers) == (0, 1, 1)


def test_a_dead_worker_consumes_nothing(driver: FileDriver) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    intake = driver.open_intake(options())
    intake.fetch(1, PATIENCE)
    assert driver.counts(["mail.high"])["mail.high"].consumers == 1
    vanish(intake)
    assert driver.counts(["mail.high"])["mail.high"].consumers == 0


def test_the_number_of_a_worker_is_not_given_again_soon(driver: FileDriver) -> None:
    seen = set()
    for n in range(5):
        intake = driver.open_intake(options(worker=f"w{n}"))
        intake.fetch(1, 0.0)
        assert isinstance(intake, FileIntake)
        assert intake._registration is not None
        seen.add(intake._registration.number)
        intake.close()
    assert len(seen) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "MAX_WORKERS", 5)  # round the corner
        intake = driver.open_intake(options(worker="w5"))
        intake.fetch(1, 0.0)
        assert isinstance(intake, FileIntake)
        assert intake._registration is not None
        assert intake._registration.number == min(seen)


def test_claims_in_a_restored_file_come_back(driver: FileDriver, folder: Path, tmp_path: Path) -> None:
    driver.put([message(1)], deadline=PATIENCE)
    driver.open_intake(options()).fetch(1, PATIENCE)
    (tmp_path / "restored").mkdir()
    copy = sqlite3.connect(tmp_path / "restored" / "queue.db")
    source = sqlite3.connect(folder / "queue.db")
    source.backup(copy)
    source.close()
    copy.close()
    restored = FileDriver(tmp_path / "restored")
    (delivery,) = restored.open_intake(options(worker="new")).fetch(1, PATIENCE)
    assert delivery.redelivered
    restored.close()


def test_a_worker_that_has_no_room_does_not_swallow_the_ring_for_another(driver: FileDriver) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    full = driver.open_intake(options(worker="full", budget=1))
    full.fetch(1, PATIENCE)
    waiting = driver.open_intake(options(worker="waiting"))
    threads = [threading.Thread(target=full.fetch, args=[1, PATIENCE], daemon=True)]
    found: list[float] = []

    def wait() -> None:
        for _ in range(10):
            if waiting.fetch(1, PATIENCE):
                found.append(time.monotonic())

    threads.append(threading.Thread(target=wait, daemon=True))
    for thread in threads:
        thread.start()
    late: list[float] = []
    board = bells._Board(driver.workers_folder)
    for n in range(10):
        wait_until(lambda: len(board.waiting()) == 1)
        sent = time.monotonic()
        driver.put([message(n)], deadline=PATIENCE)
        wait_until(lambda: len(found) == n + 1)  # noqa: B023
        late.append(found[-1] - sent)
    assert sorted(late)[5] < 0.2  # without the ring it is a second
    driver.close()
    for thread in threads:
        thread.join(PATIENCE)


@pytest.mark.parametrize("act", ["put", "move", "give_back", "close", "vanish"])
def test_a_waiting_worker_is_woken_rather_than_looking_by_itself(driver: FileDriver, act: str) -> None:
    late: list[float] = []
    for n in range(5):
        other = driver.open_intake(options("mail.low", worker=f"other-{n}"))
        if act != "put":
            driver.put([message(n, "mail.low")], deadline=PATIENCE)
            (held,) = other.fetch(1, PATIENCE)
            other.pause(frozenset({"mail.low"}))
        waiting = driver.open_intake(options("mail.low", worker=f"waiting-{n}"))
        came: list[float] = []

        def wait(waiting: Intake = waiting, came: list[float] = came) -> None:
            (delivery,) = waiting.fetch(1, PATIENCE)
            came.append(time.monotonic())
            waiting.ack(delivery)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until((driver.workers_folder / "idle").exists)
        board = bells._Board(driver.workers_folder)
        wait_until(lambda: len(board.waiting()) == 1)  # noqa: B023
        start = time.monotonic()
        match act:
            case "put":
                driver.put([message(n, "mail.low")], deadline=PATIENCE)
            case "move":
                other.move(held, message(n, "mail.low"))
            case "give_back":
                other.give_back([held])
            case "close":
                other.close()
            case "vanish":
                vanish(other)
        thread.join(PATIENCE)
        late.append(came[0] - start)
        waiting.close()
        other.close()
    assert sorted(late)[2] < 0.4  # by itself it looks once a second, and for the dead four times
