"""What the two stores cost, side by side: `python -m benchmarks.stores`.

Each round writes the same jobs to a SQLite file and to a private Redis (with an append-only file), in turn, as the
recorder does: a job is told twice, when it was queued and when it has succeeded, in batches of 500. So whatever else
the machine does hits both alike. Then the memory of a record is what Redis's grew by, and pages are searched for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import redis

from callboard.servers import PrivateRedis
from callboard.states import State, order
from callboard.store.base import Change, Query, Store
from callboard.store.control import ControlWatch
from callboard.store.redis import RedisStore
from callboard.store.sqlite import SQLiteStore

_BATCH = 500
_PAYLOAD = '{"to": ["ada@example.org"], "subject": "Your invoice", "body": "' + "x" * 130 + '"}'
_START = 1_700_000_000.0


def _queued(number: int, round_: int) -> Change:
    at = _sent_at(number, round_)
    return Change(
        job_id=_job_id(number, round_),
        order=order(0, State.QUEUED),
        state=State.QUEUED,
        at=at,
        actor="send-email",
        category="email",
        queue="email.medium",
        priority=3,
        payload=_PAYLOAD,
        enqueued_at=at,
    )


def _succeeded(number: int, round_: int) -> Change:
    at = _sent_at(number, round_)
    return Change(
        job_id=_job_id(number, round_),
        order=order(0, State.SUCCEEDED),
        state=State.SUCCEEDED,
        at=at + 0.123456,
        actor="send-email",
        category="email",
        queue="email.medium",
        priority=3,
        enqueued_at=at,
        started_at=at + 0.101234,
        finished_at=at + 0.123456,
        attempt=1,
        worker="worker-7f9c5d-x2x4q:17:3f2a91",
    )


def _sent_at(number: int, round_: int) -> float:
    return _START + 10_000 * round_ + number / 1000


def _job_id(number: int, round_: int) -> str:
    return f"0192f0c1-7b3a-7000-{round_:04x}-{number:012x}"


def _write(store: Store, round_: int, jobs: int) -> tuple[float, list[float]]:
    """Jobs a second, and how long each batch took."""
    batches = [
        [change(number, round_) for number in range(first, first + _BATCH)]
        for first in range(0, jobs, _BATCH)
        for change in (_queued, _succeeded)
    ]
    taken = [_timed(lambda batch=batch: store.write(batch)) for batch in batches]  # type: ignore[misc]
    return jobs / sum(taken), taken


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _median_ms(times: Sequence[float]) -> str:
    return f"{statistics.median(times) * 1000:.1f} ms"


def _told_after(asking: Store, watching: Store) -> str:
    """How long a pause takes to reach a worker's copy."""
    told = Event()
    watch = ControlWatch(watching, on_change=lambda _: told.set())
    watch.start()
    time.sleep(1.0)  # until it has subscribed
    times = []
    for number in range(15):
        time.sleep(0.037)  # not in step with its looks
        told.clear()
        times.append(_timed(lambda queue=f"q{number}": (asking.pause(queue), told.wait(10))))  # type: ignore[misc]
    watch.stop()
    return f"{_median_ms(times)}, at most {max(times) * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(append_only=True) as server:
        file = SQLiteStore(Path(folder) / "store.db")
        shared = RedisStore(server.url)
        shared.add("warm")
        client = redis.Redis.from_url(server.url)
        before = int(client.info("memory")["used_memory"])
        ratios = []
        for round_ in range(options.rounds):
            rates = {}
            for store in (file, shared) if round_ % 2 else (shared, file):
                rates[store], taken = _write(store, round_, options.jobs)
                print(f"round {round_}: {rates[store]:8,.0f} jobs/s, a batch {_median_ms(taken)}  {store!r}")
            ratios.append(rates[shared] / rates[file])
        latency = client.info("latencystats")["latency_percentiles_usec_evalsha"]
        print(
            f"Redis is busy with a batch for {latency['p50'] / 1000:.1f} ms, p99 {latency['p99'] / 1000:.1f} ms"
        )
        records = options.jobs * options.rounds
        used = int(client.info("memory")["used_memory"]) - before
        size = (Path(folder) / "store.db").stat().st_size
        print(f"Redis / SQLite: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(
            f"bytes a record: Redis {used / records:,.0f}, SQLite {size / records:,.0f} ({records:,} records)"
        )
        for name, query in (
            ("the newest 50", Query()),
            ("the newest 50 of a state", Query(states=[State.SUCCEEDED])),
            ("20,000 looked at for a text", Query(text="nowhere")),
        ):
            for store in (file, shared):
                times = [_timed(lambda s=store, q=query: s.search(q)) for _ in range(5)]  # type: ignore[misc]
                print(f"{name}: {_median_ms(times)}  {store!r}")
        print(f"a pause is known after {_told_after(shared, RedisStore(server.url))}  {shared!r}")
        print(f"a pause is known after {_told_after(file, SQLiteStore(Path(folder) / 'store.db'))}  {file!r}")
        gone = _timed(lambda: shared.remove_ended(before=time.time(), limit=10_000))
        print(f"10,000 forgotten in {gone:.2f} s  {shared!r}")
        client.close()
        shared.close()
        file.close()


if __name__ == "__main__":
    main()
