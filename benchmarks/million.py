"""A million jobs that are due far ahead on RabbitMQ, and a thousand near ones: `python -m benchmarks.million`.

Fills the ladder, from an hour to thirty days ahead. Then, with a worker beside it, a thousand jobs that are due in five
seconds: how late they ran, whether any ran early, and the worker's memory before and after. Then a thousand more,
and a `kill -9` of the broker before they are due: how late they ran, and how many jobs the ladder has.

What a queue of the ladder was passing on while RabbitMQ was killed, or to a queue that wasn't up yet, it passes on once
more after `dead_letter_worker_publisher_confirm_timeout`: three minutes late, where that isn't set.

It takes about three minutes, two cores and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections import Counter as Multiset
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.job import Counter, payload
from benchmarks.systems import Workers, wait_until
from benchmarks.systems.callboard import CallboardRabbitmq
from callboard.brokers.driver import Outgoing
from callboard.brokers.rabbitmq.delays import LEVELS
from callboard.servers import PrivateRabbitmq

NEAR = 1_000
SOON = 5.0
AFTER_THE_KILL = 20.0  # seconds: long enough that the broker is killed before they are due
_HOUR = 3_600.0
_CHUNK = 1_000
_PATIENCE = 600.0


class Million:
    """One run, on a node of its own."""

    def __init__(self, node: PrivateRabbitmq, folder: Path) -> None:
        self._node = node
        self._system = CallboardRabbitmq(folder, server_url=node.url)
        self._counter = Counter(folder / "counter")
        self._seen: Multiset[float] = Multiset()

    def close(self) -> None:
        self._system.close()

    def run(self, far: int) -> None:
        _say(f"queueing {far:,} jobs, due in an hour to thirty days")
        started, cpu = time.perf_counter(), _cpu()
        for batch in self._far(far):
            self._system._broker.driver.put(batch, deadline=_PATIENCE)
        took = time.perf_counter() - started
        used = 1e6 * (_cpu() - cpu) / far
        _say(f"  {far / took:,.0f} a second, each confirmed; {used:.0f} us of CPU each in the sender")
        with self._system.working(self._counter.path) as workers:
            self._warm_up(workers)
            self._near(workers)
            self._kill(workers)
        ladder = self._ladder()
        _say(f"  {ladder:,} on the ladder, of {far:,}: {'none lost' if ladder == far else 'NOT THE SAME'}")

    def _far(self, count: int) -> Iterator[list[Outgoing]]:
        actor = self._system._actor
        model = self._system._broker.prepare(actor.message(job=payload()))
        dice = random.Random(1)
        for start in range(0, count, _CHUNK):
            yield [
                replace(
                    model, job_id=f"far-{start + n}", due=time.time() + _HOUR * dice.uniform(1.0, 24.0 * 30)
                )
                for n in range(min(_CHUNK, count - start))
            ]

    def _warm_up(self, workers: Workers) -> None:
        self._system.send_many([payload()] * 100)
        self._system.fill_later(_CHUNK, 0.5)
        self._wait_for(100 + _CHUNK, workers)
        self._since()

    def _near(self, workers: Workers) -> None:
        before, ran = workers.memory_mb(), self._counter.total()
        self._system.fill_later(NEAR, SOON)
        self._wait_for(ran + NEAR, workers)
        self._tell("near ones, due in 5 s")
        _say(f"  memory of the worker: {before:.0f} MB before, {workers.memory_mb():.0f} MB after")

    def _kill(self, workers: Workers) -> None:
        ran = self._counter.total()
        self._system.fill_later(NEAR, AFTER_THE_KILL)
        self._node.write_down_queues()
        _say("killing the broker")
        self._node.kill()
        started = time.perf_counter()
        self._node.start()
        _say(f"  it was back after {time.perf_counter() - started:.1f} s")
        self._wait_for(ran + NEAR, workers)
        self._tell("near ones, due across the kill")
        _say(f"  memory of the worker: {workers.memory_mb():.0f} MB")

    def _tell(self, what: str) -> None:
        recent = self._since()
        _say(
            f"  {what}: {len(recent):,} timed, {sum(seconds < 0 for seconds in recent)} early, "
            f"late p50 {1e3 * statistics.median(recent):.0f} ms, "
            f"p99 {1e3 * recent[int(len(recent) * 0.99)]:.0f} ms, at most {1e3 * recent[-1]:.0f} ms"
        )

    def _since(self) -> list[float]:
        """How late the jobs ran that came since this was last asked."""
        now = Multiset(self._counter.latencies())
        recent, self._seen = sorted((now - self._seen).elements()), now
        return recent

    def _wait_for(self, total: int, workers: Workers) -> None:
        wait_until(
            lambda: self._counter.total() >= total, seconds=_PATIENCE, what="the jobs", workers=workers
        )

    def _ladder(self) -> int:
        """How many messages wait, once the node has counted them anew."""
        levels = [f"callboard.delay.{level:02d}" for level in range(LEVELS)]
        return sum(counts.ready for counts in self._system._broker.driver.counts(levels).values())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument("--far", type=int, default=1_000_000)
    parser.add_argument(
        "--repeat-after",
        type=float,
        metavar="SECONDS",
        help="RabbitMQ's `dead_letter_worker_publisher_confirm_timeout`; it has 180, and 10 is what we advise",
        default=10.0,
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        node = PrivateRabbitmq()
        setting = f"dead_letter_worker_publisher_confirm_timeout, {round(options.repeat_after * 1000)}"
        (node.folder / "advanced.config").write_text(f"[{{rabbit, [{{{setting}}}]}}].\n")
        _measure(node, Path(folder), options.far)


def _measure(node: PrivateRabbitmq, folder: Path, far: int) -> None:
    with node:
        run = Million(node, folder)
        try:
            run.run(far)
        finally:
            run.close()


if __name__ == "__main__":
    main()
