"""What each promise costs: the same jobs with more and more of what surrounds them, interleaved in one run.

    python -m benchmarks.promises                    a table, on the embedded queue
    python -m benchmarks.promises --rabbitmq         and one on RabbitMQ, whose driver does more for a job
    python -m benchmarks.promises --threads          and which thread of a worker used how much

Every measurement is a process of its own that runs a backlog: first the driver alone,
which claims and acknowledges; then a worker without middleware; then the stack, piece by piece; at last the
records, which are written before the clock stops. CPU time says more than the rate does while others use the
machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter as Tally
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dramatiq import Middleware
from prometheus_client import CollectorRegistry

from benchmarks.job import payload
from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.metrics import Metrics
from callboard.servers import PrivateRabbitmq
from callboard.store import open_store
from callboard.store.base import Store
from callboard.worker.garbage import look_for_garbage_less_often
from callboard.worker.leases import Leases, new_owner
from callboard.worker.slots import SlotMemory
from callboard.worker.worker import Worker
from middleware import stack

DRIVER = "the driver: claim and ack"
#: What is added, in this sequence, and the middleware that it takes.
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (DRIVER, ()),
    ("a worker, no middleware", ()),
    ("retries, dead letters", ("Retries", "DeadLetters")),
    ("current_job(), time limits", ("CurrentJob", "TimeLimits")),
    ("expiry, cancellation, limits", ("Expiry", "Cancellation", "ConcurrencyLimits", "RateLimits")),
    ("results, callbacks, groups", ("Results", "GroupCallbacks", "Callbacks", "Pipelines", "EventLoop")),
    ("logging", ("JobLogging",)),
    ("metrics", ("JobMetrics",)),
    ("records", ("Records", "Retention", "Heartbeats", "Periodic")),
    ("leases", ()),
)
#: The steps that have the store.
RECORDS, LEASES = "records", "leases"
ALL = STEPS[-1][0]

_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 120.0


def middleware_up_to(step: str, store: Store) -> list[Middleware]:
    """The part of the stack that a step and those before it take, in the stack's order."""
    wanted: set[str] = set()
    for name, classes in STEPS:
        wanted.update(classes)
        if name == step:
            break
    metrics = Metrics(CollectorRegistry())
    return [part for part in stack(store, metrics=metrics) if type(part).__name__ in wanted]


class Measurement:
    """One step, in this process.

    Args:
        step: Its name.
        folder: For the queue and the records.
        jobs: How many jobs are run.
        broker_url: Where the queue is, if it isn't in the folder.
    """

    def __init__(self, step: str, folder: Path, jobs: int, broker_url: str = "") -> None:
        self._step = step
        self._jobs = jobs
        store = open_store(f"file:{folder}")
        self._store = store if step in (RECORDS, LEASES) else None
        self._broker = Broker(
            open_driver(broker_url or f"file:{folder}"),
            store=self._store,
            middleware=middleware_up_to(step, store),
            one_host=True,
        )
        self._done: list[None] = []
        done = self._done

        def bench(job: dict[str, Any]) -> None:
            done.append(None)

        actor = ActorDecorator(self._broker)(category="bench")(bench)
        for _ in range(jobs // 1000):
            actor.send_many([{"job": payload()} for _ in range(1000)])
        self._flush()
        gc.collect()
        look_for_garbage_less_often()  # as in a process of `callboard worker`

    def run(self) -> dict[str, Any]:
        """Jobs a second, CPU seconds a job, and those of each kind of thread, after a tenth to warm up."""
        worker = self._drive if self._step == DRIVER else self._work
        warm = self._jobs // 10
        stop = worker()
        self._wait_for(warm)
        first, threads, cpu, started = len(self._done), _thread_seconds(), time.process_time(), _now()
        self._wait_for(self._jobs)
        self._flush()
        seconds, used = _now() - started, time.process_time() - cpu
        by_thread = _thread_seconds()
        by_thread.subtract(threads)
        stop()
        self._broker.close()
        ran = self._jobs - first
        return {
            "rate": ran / seconds,
            "cpu": used / ran,
            "threads": {name: seconds / ran for name, seconds in by_thread.items() if seconds},
        }

    def _drive(self) -> Any:
        """Claim and acknowledge, in a thread, and nothing else."""
        intake = self._broker.open_intake(["bench.medium"], budget=264)

        def loop() -> None:
            while len(self._done) < self._jobs:
                for delivery in intake.fetch(128, 1.0):
                    intake.ack(delivery)
                    self._done.append(None)
            intake.flush(10.0)

        thread = threading.Thread(target=loop, name="callboard-claimer")
        thread.start()

        def stop() -> None:
            thread.join()
            intake.close()

        return stop

    def _work(self) -> Any:
        if self._step != LEASES:
            worker = Worker(self._broker, ["bench.medium"], threads=8)
            worker.start()
            return worker.stop
        # In a worker, its leases are kept by another process; here by a thread, so that their cost counts.
        memory, owner, stopped = SlotMemory(1, 8), new_owner(), threading.Event()
        leases = threading.Thread(
            target=Leases(memory, owner).run, args=(self._broker, stopped), name="callboard-leases"
        )
        leases.start()
        worker = Worker(self._broker, ["bench.medium"], threads=8, slots=memory.of(0), lease_owner=owner)
        worker.start()

        def stop() -> None:
            worker.stop()
            stopped.set()
            leases.join()

        return stop

    def _wait_for(self, jobs: int) -> None:
        give_up = _now() + _PATIENCE
        while len(self._done) < jobs:
            if _now() > give_up:
                raise RuntimeError(f"only {len(self._done)} of {jobs} jobs have run")
            time.sleep(0.005)

    def _flush(self) -> None:
        if self._broker.recorder is not None:
            self._broker.recorder.flush(_PATIENCE)


def _now() -> float:
    return time.perf_counter()


def _thread_seconds() -> Tally[str]:
    """CPU seconds of this process' threads, those of one kind together."""
    used: Tally[str] = Tally()
    for thread in threading.enumerate():
        try:
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:  # it has ended meanwhile
            continue
        name = thread.name.rstrip("-0123456789").removeprefix("callboard-")
        used[name] += (int(fields[11]) + int(fields[12])) / _TICK  # type: ignore[assignment]  # seconds, not counts
    return used


def measure_all(
    rounds: int, jobs: int, node: PrivateRabbitmq | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Each step once a round, in turn."""
    found: dict[str, list[dict[str, Any]]] = {step: [] for step, _ in STEPS}
    for number in range(1, rounds + 1):
        for step in found:
            found[step].append(measure(step, jobs, node))
        print(f"round {number} of {rounds}", file=sys.stderr)
    return found


def measure(step: str, jobs: int, node: PrivateRabbitmq | None = None) -> dict[str, Any]:
    """One step, in a process of its own."""
    vhost = f"bench-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder, ExitStack() as stack:
        url = ""
        if node is not None:
            url = node.add_vhost(vhost)
            stack.callback(node.delete_vhost, vhost)
        command = [
            sys.executable,
            "-m",
            "benchmarks.promises",
            "--jobs",
            str(jobs),
            "--one",
            step,
            folder,
            url,
        ]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The medians: what each step uses, and what it adds to the one before."""
    lines = ["| | CPU µs per job | added | processed /s | of the driver's |", "|---|---|---|---|---|"]
    before = None
    drivers = statistics.median(result["rate"] for result in found[DRIVER])
    for step, _ in STEPS:
        cpu = statistics.median(result["cpu"] for result in found[step]) * 1e6
        rate = statistics.median(result["rate"] for result in found[step])
        added = "" if before is None else f"{cpu - before:+.1f}"
        sign = "" if before is None else "+ " if step != STEPS[1][0] else ""
        lines.append(f"| {sign}{step} | {cpu:.1f} | {added} | {rate:,.0f} | {rate / drivers:.2f} |")
        before = cpu
    return "\n".join(lines)


def threads_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """What each kind of thread uses in a whole worker."""
    kinds = sorted({kind for result in found[ALL] for kind in result["threads"]})
    lines = ["| thread | CPU µs per job |", "|---|---|"]
    for kind in kinds:
        used = statistics.median(result["threads"].get(kind, 0.0) for result in found[ALL]) * 1e6
        if used >= 0.1:
            lines.append(f"| {kind} | {used:.1f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.promises", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is measured")
    parser.add_argument("--jobs", type=int, default=20_000, help="how many jobs each takes")
    parser.add_argument("--rabbitmq", action="store_true", help="measure on RabbitMQ, too")
    parser.add_argument("--threads", action="store_true", help="tell which threads use the CPU")
    parser.add_argument("--one", nargs=3, metavar=("STEP", "FOLDER", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        step, folder, url = options.one
        print(json.dumps(Measurement(step, Path(folder), options.jobs, url).run()))
        return 0
    found = measure_all(options.rounds, options.jobs)
    print(table(found))
    if options.threads:
        print(f"\n{threads_table(found)}")
    if options.rabbitmq:
        with PrivateRabbitmq() as node:
            print(f"\nOn RabbitMQ:\n\n{table(measure_all(options.rounds, options.jobs, node))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
