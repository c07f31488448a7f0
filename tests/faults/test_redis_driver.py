"""Redis and the processes that use it are killed, frozen and cut off; nothing that was accepted is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import pytest
import redis

from callboard.brokers.driver import Intake, IntakeOptions, Outgoing, PutError
from callboard.brokers.redis import RedisDriver
from callboard.servers import PrivateRedis
from tests.closing import closing_all
from tests.deliveries import put, take
from tests.faults.programs import HANDS
from tests.patience import until

PATIENCE = 60.0
LEASE = 1.0

PRELUDE = (
    """
import os, signal, sys, threading, time
from callboard.brokers.driver import IntakeOptions, Outgoing, PutError
from callboard.brokers.redis import RedisDriver

driver = RedisDriver(sys.argv[1], lease=float(sys.argv[2]))
"""
    + HANDS
)


def start(
    url: str, code: str, *, lease: float = LEASE, log: IO[bytes] | None = None
) -> subprocess.Popen[str]:
    """Python code in a process of its own, on the same Redis."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), url, str(lease)],
        stdout=log or subprocess.PIPE,
        text=True,
    )


def hear(process: subprocess.Popen[str]) -> list[str]:
    """The next line that it says, in words."""
    assert process.stdout is not None
    return process.stdout.readline().split()


@contextmanager
def running(url: str, code: str, *, lease: float = LEASE) -> Iterator[subprocess.Popen[str]]:
    process = start(url, code, lease=lease)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def open_driver() -> Iterator[Callable[..., RedisDriver]]:
    """Opens drivers that are closed at the end."""
    with closing_all(partial(RedisDriver, lease=LEASE)) as open_one:
        yield open_one


Open = Callable[..., RedisDriver]


def open_intake(driver: RedisDriver, worker: str = "test") -> Intake:
    return driver.open_intake(IntakeOptions(queues=["mail.high"], budget=1000, worker=worker))


HOLDER = """
hand = intake("holder")
held = hand.fetch(3, 30)
say(*(d.body.decode() for d in held))
signal.pause()
"""


@pytest.mark.parametrize(
    ("lease", "at_most"), [(LEASE, 10.0), pytest.param(10.0, 30.0, marks=pytest.mark.slow)]
)
def test_the_jobs_of_a_killed_worker_run_again_in_time(
    redis_url: str, open_driver: Open, lease: float, at_most: float
) -> None:
    driver = open_driver(redis_url, lease=lease)
    other = open_intake(driver, "other")
    other.fetch(1, 0)  # from now on it watches
    put(driver, 1, 2, 3)
    with running(redis_url, HOLDER, lease=lease) as holder:
        assert hear(holder) == ["1", "2", "3"]
        holder.kill()
        killed = time.monotonic()
        again = take(other, 3)
    assert time.monotonic() - killed < at_most
    assert [delivery.body for delivery in again] == [b"1", b"2", b"3"]
    assert all(delivery.redelivered for delivery in again)


def test_the_jobs_of_a_killed_worker_wait_for_the_next_that_comes(redis_url: str, open_driver: Open) -> None:
    driver = open_driver(redis_url)
    put(driver, 1, 2, 3)
    with running(redis_url, HOLDER) as holder:
        assert len(hear(holder)) == 3
        holder.kill()
        holder.wait()
    time.sleep(2.5 * LEASE)  # nobody watches
    assert len(take(open_intake(driver), 3)) == 3


def test_a_killed_worker_is_buried_whose_process_was_seen_to_end_and_a_living_one_is_not(
    redis_url: str, open_driver: Open
) -> None:
    driver = open_driver(redis_url, lease=86_400.0)
    put(driver, 1, 2, 3)
    with running(redis_url, HOLDER) as holder:
        assert hear(holder) == ["1", "2", "3"]
        driver.bury("hold")
        assert driver.counts(["mail.high"])["mail.high"].claimed == 3
        holder.kill()
        holder.wait()
        driver.bury("another")
        assert driver.counts(["mail.high"])["mail.high"].claimed == 3
        driver.bury("hold")
        again = take(open_intake(driver, "other"), 3)
    assert [delivery.body for delivery in again] == [b"1", b"2", b"3"]
    assert all(delivery.redelivered for delivery in again)


def test_a_frozen_worker_keeps_its_claims_for_two_leases_and_then_its_acks_are_refused(
    redis_url: str, open_driver: Open
) -> None:
    driver = open_driver(redis_url)
    watching = open_intake(driver, "watching")
    watching.fetch(1, 0)
    put(driver, 1, 2, 3)
    frozen = """
    hand = intake("frozen")
    held = hand.fetch(3, 30)
    say(*(d.body.decode() for d in held))
    sys.stdin.readline()
    say(*(hand.holds(d) for d in held))
    for d in held:
        hand.ack(d)
    say(hand.flush(30))
    signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(frozen), redis_url, str(LEASE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert len(hear(process)) == 3
        os.kill(process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        again = take(watching, 3)
        assert time.monotonic() - stopped > 2 * LEASE
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert hear(process) == ["False", "False", "False"]
        assert hear(process) == ["True"]
        assert all(watching.holds(delivery) for delivery in again)
        assert driver.counts(["mail.high"])["mail.high"].claimed == 3
    finally:
        process.kill()
        process.communicate()


# -- ledgers


SENDER = """
n = {first}
while True:
    try:
        put(n)
    except PutError as error:
        say("failed", n, len(error.unknown))
    else:
        say("sent", n)
    n += 1
"""

WORKER = """
hand = intake("worker-{name}", budget=20)
while True:
    for delivery in hand.fetch(7, 1.0):
        if not hand.holds(delivery):
            continue
        number = int(delivery.body)
        say("start", number, time.monotonic())
        time.sleep(0.001)
        say("end", number, time.monotonic())
        if number % 10 == 3:
            try:
                hand.move(delivery, Outgoing("mail.low", delivery.body, "moved"))
            except PutError:
                say("stays", number)
                hand.give_back([delivery])
        else:
            hand.ack(delivery)
"""


@dataclass
class Ledger:
    """Senders and workers, what they say, and when they were killed."""

    url: str
    folder: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    killed: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def start(self, kind: str) -> None:
        self.count += 1
        name = f"{kind}-{self.count}"
        code = (
            SENDER.format(first=self.count * 1_000_000)
            if kind == "sender"
            else WORKER.format(name=self.count)
        )
        with (self.folder / name).open("wb") as log:
            self.processes[name] = start(self.url, code, log=log)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        self.killed[name] = time.monotonic()

    def lines(self, kind: str) -> Iterator[tuple[str, list[str]]]:
        for path in self.folder.glob(f"{kind}-*"):
            text = path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be cut off
                if line.partition(" ")[0] in ("sent", "failed", "start", "end"):
                    yield path.name, line.split()

    def sent(self) -> set[int]:
        return {int(words[1]) for _, words in self.lines("sender") if words[0] == "sent"}

    def ran(self) -> set[int]:
        return {int(words[1]) for _, words in self.lines("worker") if words[0] == "end"}

    def runs(self) -> dict[int, list[tuple[float, float]]]:
        """For each job its runs, from when to when. The run of a killed worker ends with it."""
        runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
        begun: dict[tuple[str, int], float] = {}
        for name, (word, number, moment) in self.lines("worker"):
            job = name, int(number)
            if word == "start":
                begun[job] = float(moment)
            else:
                runs[job[1]].append((begun.pop(job), float(moment)))
        for (worker, unended), since in begun.items():
            runs[unended].append((since, self.killed.get(worker, float("inf"))))
        return runs

    def end_senders(self) -> None:
        for name in [name for name in self.processes if name.startswith("sender")]:
            self.kill(name)

    def check(self, driver: RedisDriver) -> None:
        """All that was sent has run, nothing is left, and nothing ran twice at once."""
        until(lambda: self.sent() <= self.ran())
        counts = driver.counts(["mail.high"])
        until(lambda: driver.counts(["mail.high"])["mail.high"].ready == 0)
        for name in list(self.processes):
            self.kill(name)
        runs = self.runs()
        assert len(runs) > 300, counts
        overlapping = {
            number: sorted(times)
            for number, times in runs.items()
            if any(
                later[0] < earlier[1]
                for earlier, later in zip(sorted(times), sorted(times)[1:], strict=False)
            )
        }
        assert overlapping == {}


@pytest.fixture
def ledger(own_redis: PrivateRedis, tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(own_redis.url, tmp_path)
    for kind in ("sender", "sender", "worker", "worker", "worker"):
        ledger.start(kind)
    yield ledger
    for process in ledger.processes.values():
        process.kill()
        process.wait()


def test_no_job_is_lost_or_runs_twice_at_once_when_processes_are_killed_at_random(
    ledger: Ledger, open_driver: Open
) -> None:
    """Two senders and three workers; fifteen times one of them is killed, in the midst of things, and replaced."""
    chance = random.Random(7)
    until(lambda: len(ledger.ran()) > 50)
    for _ in range(15):
        time.sleep(chance.uniform(0.05, 0.3))
        victim = chance.choice(sorted(ledger.processes))
        ledger.kill(victim)
        ledger.start(victim.partition("-")[0])
    before = len(ledger.ran())
    until(lambda: len(ledger.ran()) > before + 50)
    ledger.end_senders()
    ledger.check(open_driver(ledger.url))


def test_no_job_is_lost_or_runs_twice_at_once_when_connections_are_closed_all_the_time(
    ledger: Ledger, open_driver: Open
) -> None:
    until(lambda: len(ledger.ran()) > 50)
    client = redis.Redis.from_url(ledger.url, protocol=2)
    for number in range(100):
        client.client_kill_filter(_type="pubsub" if number % 3 == 0 else "normal", skipme=True)
        time.sleep(0.03)
    client.close()
    ledger.end_senders()
    ledger.check(open_driver(ledger.url))
    assert not [words for _, words in ledger.lines("sender") if words[0] == "failed"]


def test_no_job_is_lost_or_runs_twice_at_once_when_redis_is_killed(
    own_redis: PrivateRedis, ledger: Ledger, open_driver: Open
) -> None:
    """With `appendfsync everysec` only a crash of the whole host could lose the last second."""
    until(lambda: len(ledger.ran()) > 50)
    for _ in range(3):
        own_redis.kill()
        time.sleep(0.2)
        own_redis.start()
        before = len(ledger.ran())
        until(lambda before=before: len(ledger.ran()) > before + 50)  # type: ignore[misc]
    ledger.end_senders()
    ledger.check(open_driver(ledger.url))


def test_what_was_confirmed_with_appendfsync_always_survives_a_kill(
    installed: Callable[[Callable[[], PrivateRedis]], PrivateRedis], open_driver: Open
) -> None:
    always = installed(lambda: PrivateRedis(append_only=True, options={"appendfsync": "always"}))
    with always as server:
        driver = open_driver(server.url)
        confirmed: set[int] = set()
        unknown: set[int] = set()
        stop = threading.Event()

        def send(first: int) -> None:
            number = first
            while not stop.is_set():
                try:
                    driver.put([Outgoing("mail.high", b"%d" % number, "job")], deadline=0.2)
                except PutError as error:
                    unknown.update(int(one.body) for one in error.unknown)
                else:
                    confirmed.add(number)
                number += 1

        threads = [threading.Thread(target=send, args=[k * 1_000_000]) for k in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            wanted = len(confirmed) + 100
            until(lambda wanted=wanted: len(confirmed) > wanted)  # type: ignore[misc]
            server.kill()
            server.start()
        stop.set()
        for thread in threads:
            thread.join()
        ready = driver.counts(["mail.high"])["mail.high"].ready
        found = [int(delivery.body) for delivery in take(open_intake(driver), ready)]
        assert len(found) == len(set(found))
        assert confirmed <= set(found) <= confirmed | unknown
