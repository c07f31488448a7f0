"""What a worker tells through its HTTP port: its metrics, and whether it does its work.

It belongs to the supervisor. Some of it is memory that the worker processes share, in which they keep their
numbers (`Totals`) and their pulses; the rest is a companion process that asks broker and store (`Observer`), and
the port itself (`HttpServer`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from callboard.brokers.base import Broker
from callboard.loggers import get_logger
from callboard.metrics.catalogue import SHARED_METRICS, WORKER_METRICS
from callboard.worker.http_server import Address, Answer, HttpServer, verdict
from callboard.worker.observer import INTERVAL, BrokerSeen, Observer, StoreSeen
from callboard.worker.pulse import Pulse, PulseMemory, StallDetector
from callboard.worker.totals import Totals

log = get_logger(__name__)

_LOOK_EVERY = 1.0
#: For so many isolated jobs at once, in one process, there is room at least. Those that have just ended count, too.
_LEAST_RUNNERS = 128
#: Seconds that a worker may be without a process that is ready: it starts, or replaces one.
_WITHOUT_PROCESS = 30.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker process that is ready, as the supervisor knows it.

    Attributes:
        pid: Its.
        block: Which block of everything it has.
        running: How many jobs it runs.
        leaving: Whether it was told to stop.
        queues: What it consumes, if not the same as most.
        threads: How many jobs it runs at once, if not as many as most.
    """

    pid: int
    block: int
    running: int
    leaving: bool
    queues: Sequence[str] | None = None
    threads: int | None = None


@dataclass(slots=True)
class WorkerStates:
    """What the supervisor tells: its worker processes that are ready, what they consume, whether all stop."""

    workers: Sequence[WorkerState] = ()
    queues: Sequence[str] = ()
    stopping: bool = False


class Monitoring:
    """See the module's head.

    Args:
        blocks: How many processes there can be at once.
        processes: How many worker processes there should be.
        threads: How many jobs each of them runs at once.
        stalled_after: Seconds that a process may claim nothing while messages wait.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        blocks: int,
        processes: int,
        threads: int,
        stalled_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._processes = processes
        self._threads = threads
        self._totals = Totals(blocks, runners=max(_LEAST_RUNNERS, 2 * threads + 2))
        self._pulses = PulseMemory(blocks)
        self._observer = Observer(min(INTERVAL, stalled_after / 6))
        self._stalls = StallDetector(stalled_after, clock)
        self._counts = dict.fromkeys((n for n, (kind, _) in WORKER_METRICS.items() if kind == "counter"), 0)
        self._lost: set[int] = set()  # the processes that are to be replaced, until they have ended
        self._states = WorkerStates()
        self._with_process = self._next_look = clock()
        self._registry = CollectorRegistry()
        for collector in (self._totals, _Told(self._of_worker), _Told(self._of_shared)):
            self._registry.register(collector)
        self._server: HttpServer | None = None

    # -- for the processes -------------------------------------------------------------------------------

    def observe(self, broker: Broker, stop: threading.Event) -> None:
        """What has to run beside the worker processes."""
        self._observer.run(broker, stop)

    def join(self, block: int) -> Pulse:
        """In a new process: keep its numbers where the supervisor sees them."""
        self._totals.join(block)
        return self._pulses.of(block)

    # -- the port ----------------------------------------------------------------------------------------

    def open(self, address: Address) -> None:
        """Open the port.

        Raises:
            SettingsError: If nothing can listen there.
        """
        pages = {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}
        self._server = HttpServer(address, pages, setting="CALLBOARD_WORKER_HTTP")
        log.info("the worker's port is open", address=str(self._server.address), pages=" ".join(pages))

    def close(self) -> None:
        """Close the port. In a forked process: its copies alone."""
        if self._server is not None:
            self._server.close()

    def wait(self, files: Sequence[int], seconds: float) -> list[int]:
        """Wait until one of these files can be read, and serve the port meanwhile; returns those that can."""
        assert self._server is not None
        watched = list(files) if self._totals.runners is None else [*files, self._totals.runners.bell]
        readable = self._server.wait(watched, min(seconds, _LOOK_EVERY))
        self._totals.fold_runners()
        return [file for file in readable if file in files]

    # -- for the supervisor ------------------------------------------------------------------------------

    def ended(self, pid: int, block: int, *, died: bool) -> None:
        """A process has ended, by itself or as it was told to."""
        self._totals.fold(block)
        self._pulses.of(block).clear()
        self._stalls.forget(pid)
        self._lost.discard(pid)
        self._counts["callboard_worker_process_deaths"] += died

    def look(self, states: WorkerStates) -> list[int]:
        """Look how the processes are, once a second; returns the pids of those that should be replaced."""
        self._states = states
        now = self._clock()
        if any(not worker.leaving for worker in states.workers):
            self._with_process = now
        if now < self._next_look:
            return []
        self._next_look = now + _LOOK_EVERY
        elapsed, work_waits = self._stalls.elapsed(), self._work_waits(states.queues)
        lost = []
        for worker in states.workers:
            if worker.leaving:
                continue
            pulse = self._pulses.of(worker.block)
            waits = work_waits if worker.queues is None else self._work_waits(worker.queues)
            self._stalls.look(
                worker.pid, pulse, elapsed, has_work=waits and worker.running < self._threads_of(worker)
            )
            ill = self._stalls.needs_replacing(worker.pid, runs_jobs=worker.running > 0)
            if ill and worker.pid not in self._lost:
                self._lost.add(worker.pid)
                self._counts["callboard_worker_process_stalls"] += 1
                lost.append(worker.pid)
        return lost

    def _threads_of(self, worker: WorkerState) -> int:
        return self._threads if worker.threads is None else worker.threads

    def _work_waits(self, queues: Sequence[str]) -> bool:
        """Whether messages wait that may be claimed. What isn't known doesn't wait."""
        broker, store = self._observer.broker.get(), self._observer.store.get()
        if broker is None or store is None:
            return False
        return any(q.ready and q.name in queues and q.name not in store.paused for q in broker.queues)

    # -- the pages ---------------------------------------------------------------------------------------

    def _metrics(self) -> Answer:
        return Answer(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _healthz(self) -> Answer:
        workers = self._states.workers
        problems = [
            f"process {worker.pid} claims nothing although messages wait"
            for worker in workers
            if not worker.leaving and self._stalls.has_stalled(worker.pid)
        ]
        without = self._clock() - self._with_process
        if without > _WITHOUT_PROCESS and not self._states.stopping:
            problems.append(f"no process has been ready for {without:.0f} s")
        return verdict(problems)

    def _readyz(self) -> Answer:
        if self._states.stopping:
            return verdict(["the worker stops"])
        ready = [worker for worker in self._states.workers if not worker.leaving]
        problems = []
        if len(ready) < self._processes:
            problems.append(f"{len(ready)} of {self._processes} processes are ready")
        problems += [
            f"process {worker.pid} doesn't consume"
            for worker in ready
            if not self._stalls.consumes(worker.pid)
        ]
        if self._observer.broker.get() is None:
            problems.append("the broker can't be reached")
        return verdict(problems)

    # -- the metrics -------------------------------------------------------------------------------------

    def _of_worker(self) -> Iterator[Metric]:
        ready = [worker for worker in self._states.workers if not worker.leaving]
        values: dict[str, float] = {
            "callboard_worker_processes": len(ready),
            "callboard_worker_processes_wanted": self._processes,
            "callboard_worker_threads": sum(map(self._threads_of, ready)),
            "callboard_worker_processes_stalled": sum(self._stalls.has_stalled(w.pid) for w in ready),
            **self._counts,
        }
        for name, (kind, text) in WORKER_METRICS.items():
            family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            yield family(name, text, value=values[name])

    def _of_shared(self) -> Iterator[Metric]:
        broker, store = self._observer.broker.get(), self._observer.store.get()
        samples: _Samples = {
            "callboard_broker_up": [((), broker is not None)],
            "callboard_store_up": [((), store is not None)],
        }
        if broker is not None:
            samples |= _of_broker(broker, store)
        if store is not None:
            samples |= _of_store(store)
        for name, (kind, labels, text) in SHARED_METRICS.items():
            if name in samples:
                family = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(
                    name, text, labels=labels
                )
                for values, value in samples[name]:
                    family.add_metric(values, value)
                yield family


_Samples = dict[str, list[tuple[tuple[str, ...], float]]]


def _of_broker(broker: BrokerSeen, store: StoreSeen | None) -> _Samples:
    samples: _Samples = {
        "callboard_dead_letters": [((category,), count) for category, count in broker.dead.items()],
        "callboard_quarantined": [((), broker.quarantined)],
        "callboard_schedules": [((), broker.schedules)],
    }
    for queue in broker.queues:
        labels = queue.name, queue.category, queue.priority
        known = store.consumers.get(queue.name, 0) if store is not None else 0
        of_queue: dict[str, float | None] = {
            "ready": queue.ready,
            "claimed": queue.claimed,
            "delayed": queue.delayed,
            "consumers": max(queue.consumers, known),
            "paused": queue.name in store.paused if store is not None else None,
            "oldest_seconds": queue.oldest,
        }
        for name, value in of_queue.items():
            if value is not None:
                samples.setdefault(f"callboard_queue_{name}", []).append((labels, value))
    return samples


def _of_store(store: StoreSeen) -> _Samples:
    return {
        "callboard_workers": [((), store.workers)],
        "callboard_scheduler_up": [((), store.scheduler_lives)],
        "callboard_records_dropped": [((), store.records_dropped)],
    }


class _Told(Collector):
    def __init__(self, tell: Callable[[], Iterator[Metric]]) -> None:
        self._tell = tell

    def collect(self) -> Iterator[Metric]:
        yield from self._tell()
