"""Nothing is lost, and nothing runs twice at once, whichever process is killed.

Two producers send 10,000 jobs to a worker of three processes, and twenty times one of the five is killed
with signal 9 at a random moment. The seed is printed; `LEDGER_SEED` repeats a run. What brokers suffer is in
`test_ledger_under_faults.py`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path

from callboard.brokers.file import FileDriver
from callboard.servers import PrivateRedis
from tests.faults.ledger import Ledger, Processes, until

JOBS, KILLS = 10_000, 20


def _run_with_kills(processes: Processes, broker_url: str) -> None:
    """Send and run all the jobs, killing on the way; check the ledger."""
    ledger = processes.ledger
    seed = int(os.environ.get("LEDGER_SEED", time.time_ns() % 1_000_000))
    print(f"LEDGER_SEED={seed}")
    chance = random.Random(seed)
    processes.start_worker(broker_url)
    for name in ("a", "b"):
        processes.start_producer(name, broker_url, JOBS // 2)
    until(lambda: len(ledger.working_pids()) >= 2, seconds=60, what="the start")
    # The kills are spread over the work, not over time: the machine may be slow.
    marks = sorted(chance.randrange(JOBS * 9 // 10) for _ in range(KILLS))
    end = time.monotonic() + 480
    while marks or any(p.poll() != 0 for p in processes.producers.values()):
        assert time.monotonic() < end, f"still {len(marks)} kills to go after 480 s"
        processes.revive_producers()
        if marks and len(ledger.sent()) >= marks[0] and ledger.working_pids():
            processes.kill_one(chance)
            del marks[0]
        time.sleep(0.02)
    until(lambda: not ledger.lost(), seconds=120, what="the backlog")
    _check(ledger)


def _check(ledger: Ledger) -> None:
    print(ledger)
    assert len(ledger.sent()) >= JOBS
    assert ledger.lost() == set()
    assert ledger.at_once() == []
    # Each kill can make what its process held run again: what ran on four threads, and what was
    # finished but not yet acked.
    assert len(ledger.again()) <= KILLS * 50
    assert len(ledger.killed) == KILLS


def test_nothing_is_lost_or_run_twice_at_once_on_the_embedded_queue(
    processes: Processes, tmp_path: Path
) -> None:
    _run_with_kills(processes, f"file:{tmp_path}")
    processes.stop()
    (path,) = tmp_path.glob("queue.db")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    driver = FileDriver(tmp_path)
    try:
        counts = driver.counts([f"ledger.{word}" for word in ("critical", "high", "medium", "low")])
        assert sum(c.ready + (c.claimed or 0) for c in counts.values()) == 0
    finally:
        driver.close()


def test_nothing_is_lost_or_run_twice_at_once_on_rabbitmq(processes: Processes, amqp_url: str) -> None:
    _run_with_kills(processes, amqp_url)


def test_nothing_is_lost_or_run_twice_at_once_on_redis(processes: Processes, own_redis: PrivateRedis) -> None:
    _run_with_kills(processes, own_redis.url)
