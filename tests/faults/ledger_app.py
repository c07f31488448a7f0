"""The application of the ledger tests: a job that notes when it starts and ends.

Run as a command it is a producer: `python -m tests.faults.ledger_app NAME COUNT` sends until so many sends
have returned, and notes the id of each that did. With a count of 0 it sends a few hundred a second until there
is a file `enough`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from broker import actor, broker
from callboard import Priority, current_job
from callboard.errors import SendError

PAUSE = 0.003  # seconds between two sends, so that what is tested is the fault and not the load
FOLDER = Path(os.environ.get("LEDGER_FOLDER", "."))


def note(name: str, *words: object) -> None:
    """Append a line in one write: it stays if the process is killed the moment after."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@actor(category="ledger", retries=3)
def work(milliseconds: float) -> None:
    """Safe to run twice: it only takes notes."""
    job = current_job()
    note("runs", "start", job.id, os.getpid(), time.monotonic(), job.attempt)
    try:
        time.sleep(milliseconds / 1000)
    except BaseException:
        note("runs", "cut", job.id, os.getpid(), time.monotonic(), job.attempt)
        raise
    note("runs", "end", job.id, os.getpid(), time.monotonic(), job.attempt)


def milliseconds() -> float:
    """How long a job takes: up to 3 ms, or up to 2 s for the share of `LEDGER_LONG`."""
    return random.random() * (2_000 if random.random() < float(os.environ.get("LEDGER_LONG", "0")) else 3)


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
            work.using(job_id=job_id, priority=random.choice(priorities)).send(milliseconds())
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
