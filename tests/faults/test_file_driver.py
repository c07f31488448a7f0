"""Processes on the file driver are killed, frozen and forked; nothing that was accepted is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callboard.brokers.driver import Intake, IntakeOptions, Outgoing, PutError
from callboard.brokers.file import FileDriver
from tests.deliveries import put, take
from tests.faults.programs import HANDS

PATIENCE = 60.0

PRELUDE = (
    """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from callboard.brokers.driver import IntakeOptions, Outgoing
from callboard.brokers.file import FileDriver

driver = FileDriver(Path(sys.argv[1]))
"""
    + HANDS
)


class Program:
    """Python code in a process of its own, on the same folder."""

    def __init__(self, folder: Path, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def hear(self) -> list[str]:
        """The next line that it says, in words."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """It, and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def driver(folder: Path) -> Iterator[FileDriver]:
    driver = FileDriver(folder)
    yield driver
    driver.close()


@pytest.fixture
def program(folder: Path) -> Iterator[Callable[[str], Program]]:
    programs: list[Program] = []

    def start(code: str) -> Program:
        programs.append(Program(folder, code))
        return programs[-1]

    yield start
    for one in programs:
        one.end()


def open_intake(driver: FileDriver) -> Intake:
    return driver.open_intake(IntakeOptions(queues=["mail.high"], budget=1000, worker=f"test-{os.getpid()}"))


def assert_sound(folder: Path) -> None:
    connection = sqlite3.connect(folder / "queue.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


SENDER = """
for n in range({start}, {start} + 1_000_000):
    put(n)
    say(n)
"""

WORKER = """
hand = intake("worker-{name}", budget=20)
while True:
    for delivery in hand.fetch(7, 1.0):
        say(delivery.body.decode())
        if int(delivery.body) % 10 == 3:
            hand.move(delivery, Outgoing("mail.low", delivery.body, "moved"))
        else:
            hand.ack(delivery)
"""


def test_no_message_is_lost_when_processes_are_killed_at_random(
    driver: FileDriver, folder: Path, tmp_path: Path
) -> None:
    """Two senders and three workers; 25 times one of them is killed, in the midst of things, and replaced."""
    chance = random.Random(5)
    logs: list[Path] = []

    def start(kind: str, name: int) -> subprocess.Popen[bytes]:
        code = SENDER.format(start=name * 1_000_000) if kind == "sender" else WORKER.format(name=name)
        logs.append(tmp_path / f"{kind}-{name}.log")
        with logs[-1].open("wb") as log:
            return subprocess.Popen([sys.executable, "-c", PRELUDE + code, str(folder)], stdout=log)

    def lines(place: int) -> int:
        """How much it has said since it started."""
        return logs[current[place]].read_bytes().count(b"\n")

    kinds = ["sender", "sender", "worker", "worker", "worker"]
    current = list(range(len(kinds)))
    processes = [start(kind, name) for name, kind in enumerate(kinds)]
    end = time.monotonic() + PATIENCE
    try:
        for _ in range(25):
            place, words = chance.randrange(len(kinds)), chance.choice([0, 1, 5, 20, 50])
            while lines(place) < words and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.01))
            processes[place].kill()
            processes[place].wait()
            current[place] = len(logs)
            processes[place] = start(kinds[place], len(logs))
    finally:
        for process in processes:
            process.kill()
            process.wait()

    def numbers(kind: str) -> list[int]:
        """What they have said, besides their logs; the last line may be cut off."""
        return [
            int(line)
            for log in logs
            if log.name.startswith(kind)
            for line in log.read_text().splitlines(keepends=True)
            if line.endswith("\n") and line.strip().isdecimal()
        ]

    sent, ran = numbers("sender"), numbers("worker")
    assert len(sent) > 50
    assert len(ran) > 50
    intake = driver.open_intake(
        IntakeOptions(queues=["mail.high", "mail.low"], budget=100_000, worker="last")
    )
    counts = driver.counts(["mail.high", "mail.low"])
    left = take(intake, sum(count.ready + (count.claimed or 0) for count in counts.values()))
    low = {int(delivery.body) for delivery in left if delivery.queue == "mail.low"}
    high = {int(delivery.body) for delivery in left if delivery.queue == "mail.high"}
    assert len(left) == len(low) + len(high)
    assert all(number % 10 == 3 for number in low)
    assert not low & high
    assert set(sent) <= set(ran) | low | high
    moved = {number for number in sent if number % 10 == 3}
    assert moved <= low | high
    assert_sound(folder)


def test_a_worker_whose_jobs_have_forked_is_rescued_all_the_same(
    driver: FileDriver, program: Callable[[str], Program]
) -> None:
    put(driver, 1, 2, 3)
    worker = program(
        """
        hand = intake("forker")
        held = hand.fetch(3, 10)
        children = [subprocess.Popen(["sleep", "600"])]
        if not (child := os.fork()):
            time.sleep(600)
        say(len(held), child, children[0].pid)
        time.sleep(600)
        """
    )
    held, *children = map(int, worker.hear())
    assert held == 3
    worker.kill()
    for child in children:
        os.kill(child, 0)  # they live
    deliveries = take(open_intake(driver), 3)
    assert all(delivery.redelivered for delivery in deliveries)
    for child in children:
        os.kill(child, 0)


def test_a_frozen_worker_keeps_its_claims(driver: FileDriver, program: Callable[[str], Program]) -> None:
    put(driver, 1, 2)
    worker = program(
        """
        hand = intake("frozen")
        held = hand.fetch(2, 10)
        say(len(held))
        sys.stdout.flush()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
        for delivery in held:
            hand.ack(delivery)
        say(hand.flush(30))
        """
    )
    assert worker.hear() == ["2"]
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
    intake = open_intake(driver)
    assert intake.fetch(10, 1.5) == []
    os.kill(worker.process.pid, signal.SIGCONT)
    assert worker.hear() == ["True"]
    assert driver.counts(["mail.high"])["mail.high"].claimed == 0


def test_a_writer_that_freezes_makes_others_fail_within_their_deadline(
    driver: FileDriver, folder: Path, program: Callable[[str], Program]
) -> None:
    put(driver, 1)
    writer = program(
        """
        def freeze(connection):
            connection.execute("DELETE FROM messages")
            say("frozen")
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGSTOP)

        driver.writer.run(freeze, durable=True, until=time.monotonic() + 30)
        """
    )
    assert writer.hear() == ["frozen"]
    os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED | os.WNOWAIT)
    start = time.monotonic()
    for _ in range(3):
        with pytest.raises(PutError) as caught:
            driver.put([Outgoing("mail.high", b"2", "job-2")], deadline=0.3)
        assert len(caught.value.not_queued) == 1
    assert time.monotonic() - start < 10
    writer.kill()
    put(driver, 3)
    assert [delivery.body for delivery in take(open_intake(driver), 2)] == [b"1", b"3"]
    assert_sound(folder)


def test_a_forked_child_opens_its_own_and_leaves_its_parents_alone(
    driver: FileDriver, folder: Path, program: Callable[[str], Program]
) -> None:
    forker = program(
        """
        hand = intake("parent")
        put(1, 2)
        held = hand.fetch(1, 10)
        child = os.fork()
        if not child:
            assert hand.fetch(1, 0.1) == []
            assert not hand.holds(held[0])
            hand.ack(held[0])
            hand.close()
            put(3)
            own = intake("child", budget=1)
            assert [d.body for d in own.fetch(1, 10)] == [b"2"]
            driver.close()
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        assert hand.holds(held[0])
        put(4)
        rest = hand.fetch(10, 10)
        say(status, *(d.body.decode() for d in held + rest))
        time.sleep(600)
        """
    )
    assert forker.hear() == ["0", "1", "2", "3", "4"]
    assert driver.counts(["mail.high"])["mail.high"].claimed == 4
    forker.kill()
    assert len(take(open_intake(driver), 4)) == 4
    assert_sound(folder)


def test_forking_while_other_threads_send_neither_hangs_nor_harms(
    driver: FileDriver, folder: Path, program: Callable[[str], Program]
) -> None:
    forker = program(
        """
        over = threading.Event()
        sent = [0] * 4

        def send(place):
            while not over.is_set():
                put(place * 100_000 + sent[place])
                sent[place] += 1

        threads = [threading.Thread(target=send, args=[place]) for place in range(4)]
        for thread in threads:
            thread.start()
        failures = 0
        for n in range(20):
            child = os.fork()
            if not child:
                put(900_000 + n)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            failures += status != 0
        over.set()
        for thread in threads:
            thread.join()
        say(failures, *sent)
        """
    )
    failures, *sent = map(int, forker.hear())
    assert failures == 0
    expected = {place * 100_000 + n for place, count in enumerate(sent) for n in range(count)}
    expected |= set(range(900_000, 900_020))
    intake = driver.open_intake(IntakeOptions(queues=["mail.high"], budget=100_000, worker="last"))
    found = [int(delivery.body) for delivery in take(intake, len(expected))]
    assert sorted(found) == sorted(expected)
    assert_sound(folder)


def test_a_killed_walk_lets_the_next_one_in(driver: FileDriver, program: Callable[[str], Program]) -> None:
    put(driver, 1)
    walker = program(
        """
        def hang(message):
            say("inside")
            time.sleep(600)

        driver.walk("mail.high", hang)
        """
    )
    assert walker.hear() == ["inside"]
    walker.kill()
    assert len(driver.peek("mail.high")) == 1
