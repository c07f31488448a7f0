"""The application of the ledger tests: jobs that note when they start and end, isolated ones, and such of a schedule.

Run as a command it is a producer: `python -m tests.faults.ledger_app NAME COUNT` sends until so many sends
have returned, and notes the id of each that did. With a count of 0 it sends a few hundred a second until there
is a file `enough`.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker import actor, broker
from callboard import Priority, current_job
from callboard.cron import Cron
from callboard.errors import SendError

PAUSE = 0.003  # seconds between two sends, so that what is tested is the fault and not the load
SCHEDULES = ("pulse-a", "pulse-b")
FOLDER = Path(os.environ.get("LEDGER_FOLDER", "."))


def note(name: str, *words: object) -> None:
    """Append a line in one write: it stays if the process is killed the moment after."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@contextmanager
def noted(worker: int) -> Iterator[None]:
    """Note when what is done here begins and ends, and in which process of which worker process."""
    job = current_job()

    def tell(event: str) -> None:
        note("runs", event, job.id, os.getpid(), time.monotonic(), job.attempt, worker)

    tell("start")
    try:
        yield
    except BaseException:
        tell("cut")
        raise
    tell("end")


@actor(category="ledger", retries=3)
def work(milliseconds: float) -> None:
    """Safe to run twice: it only takes notes."""
    with noted(os.getpid()):
        time.sleep(milliseconds / 1000)


@actor(category="ledger", retries=3, isolated=True)
def work_apart(milliseconds: float) -> None:
    """The same in a process of its own, which its worker's nursery has forked."""
    with noted(parent_of(os.getppid())):
        time.sleep(milliseconds / 1000)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@dataclass(frozen=True, eq=False, repr=False)
class EverySecond(Cron):
    """What no cron expression says."""

    def next_after(self, moment: datetime) -> datetime:
        return self.floor(moment) + timedelta(seconds=1)

    def floor(self, moment: datetime) -> datetime:
        return moment.astimezone(UTC).replace(microsecond=0)


def declare(name: str) -> None:
    """A schedule whose job notes, beside its run, which message it was: two of a tick are told apart by that."""

    @actor(
        name=name,
        category="ledger",
        retries=3,
        periodic=EverySecond("* * * * *", misfire="run all", misfire_limit=1000),
    )
    def pulse() -> None:
        with noted(os.getpid()):
            message = broker.running[threading.get_ident()]
            note("ticks", message.message_id, message.message_timestamp)


for name in SCHEDULES:
    declare(name)


def share(name: str) -> bool:
    """By chance, for the share that a variable of the environment gives."""
    return random.random() < float(os.environ.get(name, "0"))


def milliseconds() -> float:
    """How long a job takes: up to 3 ms, or up to 2 s for the share of `LEDGER_LONG`."""
    return random.random() * (2_000 if share("LEDGER_LONG") else 3)


def produce(name: str, count: int) -> None:
    """Send until `count` sends of this producer, killed ones included, have returned, or until it is enough."""
    sent = FOLDER / f"sent-{name}"
    done = len(sent.read_text().splitlines()) if sent.exists() else 0
    incarnation, n = f"{name}.{os.getpid()}", 0
    priorities = list(Priority)
    while done < count if count else not (FOLDER / "enough").exists():
        n += 1
        job_id = f"{incarnation}.{n}"
        try:
            what = work_apart if share("LEDGER_APART") else work
            what.using(job_id=job_id, priority=random.choice(priorities)).send(milliseconds())
            note(f"sent-{name}", job_id, time.monotonic())
            done += 1
            if not count:
                time.sleep(PAUSE)
        except SendError as error:
            note(f"raised-{name}", error.job_id, type(error).__name__)
            time.sleep(0.1)
    broker.close()


if __name__ == "__main__":
    produce(sys.argv[1], int(sys.argv[2]))
