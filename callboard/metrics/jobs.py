"""What is counted and timed of jobs. Labels: category, actor, priority.

Counting a job takes about three microseconds here, a third of what as many of prometheus_client's own
counters and histograms take: one lock a call, and what Prometheus reads is made when it asks.
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import msgspec
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from callboard.loggers import get_logger
from callboard.metrics.blocks import Block

log = get_logger(__name__)

LABELS = ("category", "actor", "priority")

#: The counters: `callboard_jobs_..._total`.
COUNTERS = {
    "enqueued": "Jobs that were accepted.",
    "started": "Runs that were started.",
    "succeeded": "Jobs that succeeded.",
    "failed": "Runs that failed, whether they are tried again or not.",
    "retried": "Failed runs that are tried again.",
    "dead": "Jobs that became dead letters.",
}
IN_PROGRESS = "callboard_jobs_in_progress"
RUN_SECONDS = "callboard_job_run_seconds"
QUEUE_SECONDS = "callboard_job_queue_seconds"

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)

#: Category, actor and priority.
JobLabels = tuple[str, str, str]
#: Where jobs are counted whose labels find no room.
OTHER: JobLabels = ("other", "other", "other")

# The floats of one actor's jobs: the counters, two histograms (a float a bucket, then the sum), what runs now.
_COUNTER_PLACES = {name: place for place, name in enumerate(COUNTERS)}
_ENQUEUED, _STARTED = _COUNTER_PLACES["enqueued"], _COUNTER_PLACES["started"]
_TIMES_SIZE = len(BUCKETS) + 2
_RUN = len(COUNTERS)
_QUEUE = _RUN + _TIMES_SIZE
_RUNNING = _QUEUE + _TIMES_SIZE
FLOATS = _RUNNING + 1
_BOUNDS = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]


class JobNumbers:
    """What is known of one actor's jobs at one priority."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._floats = [0.0] * FLOATS
        self._shown: list[float] | memoryview[float] = self._floats  # the same, where others can see them

    def enqueued(self, count: int = 1) -> None:
        """Some jobs were accepted."""
        floats, shown = self._floats, self._shown
        with self._lock:
            shown[_ENQUEUED] = floats[_ENQUEUED] = floats[_ENQUEUED] + count

    def started(self, queue_seconds: float) -> None:
        """A run was started, so long after it could have been."""
        floats, shown = self._floats, self._shown
        bucket = _QUEUE + bisect_left(BUCKETS, queue_seconds)
        with self._lock:
            shown[_STARTED] = floats[_STARTED] = floats[_STARTED] + 1
            shown[bucket] = floats[bucket] = floats[bucket] + 1
            shown[_RUNNING - 1] = floats[_RUNNING - 1] = floats[_RUNNING - 1] + queue_seconds

    def ended(self, run_seconds: float | None, *what: str) -> None:
        """A message was settled: what to count, and how long the run took, if there was one."""
        floats, shown = self._floats, self._shown
        with self._lock:
            for counter in what:
                place = _COUNTER_PLACES[counter]
                shown[place] = floats[place] = floats[place] + 1
            if run_seconds is not None:
                bucket = _RUN + bisect_left(BUCKETS, run_seconds)
                shown[bucket] = floats[bucket] = floats[bucket] + 1
                shown[_QUEUE - 1] = floats[_QUEUE - 1] = floats[_QUEUE - 1] + run_seconds

    def show(self, shown: memoryview[float]) -> None:
        """From now on keep the numbers there, too."""
        with self._lock:
            for place, value in enumerate(self._floats):
                shown[place] = value
            self._shown = shown

    def hide(self) -> None:
        """Undo `show`, in a process that was forked while another thread may have counted."""
        self._lock = threading.Lock()
        self._shown = self._floats

    def show_running(self, count: int) -> None:
        """Say how many run now."""
        self._shown[_RUNNING] = self._floats[_RUNNING] = float(count)

    def read(self) -> tuple[float, ...]:
        """All floats, as they are at one moment."""
        with self._lock:
            return tuple(self._floats)


class Metrics(Collector):
    """The metrics of the jobs of one process.

    Args:
        registry: Where Prometheus finds them.

    Attributes:
        in_progress: Gives the labels of each job that runs now; whoever runs jobs sets it.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._jobs: dict[JobLabels, JobNumbers] = {}
        self._adding = threading.Lock()
        self._block: Block | None = None
        self._full = False
        self.in_progress: Callable[[], Iterable[JobLabels]] = tuple
        registry.register(self)
        _all_metrics.add(self)

    def of(self, category: str, actor: str, priority: str) -> JobNumbers:
        """The metrics with these labels."""
        labels = category, actor, priority
        with self._adding:
            known = self._jobs.get(labels)
            if known is None:
                known = self._added(labels)
                if known is not self._jobs.get(OTHER):
                    self._jobs[labels] = known
            return known

    def _added(self, labels: JobLabels) -> JobNumbers:
        numbers = JobNumbers()
        if self._block is None or _show(labels, numbers, self._block):
            return numbers
        if not self._full:
            self._full = True
            log.warning(
                "no room for the metrics of more actors, the others are counted together", as_=OTHER[1]
            )
        return self._jobs[OTHER]

    def share(self, block: Block) -> None:
        """Keep the numbers in a block that others can see, too. Once, before there is anything to count.

        What finds no room in it is counted as `OTHER`.
        """
        with self._adding:
            self._block = block
            for labels, numbers in {OTHER: JobNumbers(), **self._jobs}.items():
                if _show(labels, numbers, block):
                    self._jobs[labels] = numbers

    @property
    def is_shared(self) -> bool:
        """Whether the numbers are in a block."""
        return self._block is not None

    def keep_apart(self) -> None:
        """Undo `share`, in a process that was forked from one that shares."""
        if self._block is not None:
            self._block = None
            self._adding = threading.Lock()
            for numbers in self._jobs.values():
                numbers.hide()

    def show_running(self) -> None:
        """Show others what runs now. For a process that shares its numbers: now and then."""
        running: dict[JobNumbers, int] = {}
        for labels, count in self._running().items():
            numbers = self.of(*labels)
            running[numbers] = running.get(numbers, 0) + count
        for numbers, count in running.items():
            numbers.show_running(count)

    def _running(self) -> dict[JobLabels, int]:
        running = dict.fromkeys(self._jobs, 0)
        for labels in self.in_progress():
            running[labels] = running.get(labels, 0) + 1
        return running

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        jobs = {labels: numbers.read() for labels, numbers in list(self._jobs.items())}
        return families(jobs, self._running())


_all_metrics: weakref.WeakSet[Metrics] = weakref.WeakSet()


def _keep_apart() -> None:
    """In a process that was forked by a job: the block is its parent's."""
    for metrics in all_metrics():
        metrics.keep_apart()


os.register_at_fork(after_in_child=_keep_apart)


def all_metrics() -> list[Metrics]:
    """All that live in this process; usually one."""
    return list(_all_metrics)


def families(
    jobs: Mapping[JobLabels, Sequence[float]], running: Mapping[JobLabels, int] | None = None
) -> Iterator[Metric]:
    """What Prometheus reads.

    Args:
        jobs: The floats of `JobNumbers`, by labels.
        running: How many jobs run now; without it, the floats say it.
    """
    counters = {
        name: CounterMetricFamily(f"callboard_jobs_{name}", text, labels=LABELS)
        for name, text in COUNTERS.items()
    }
    gauge = GaugeMetricFamily(IN_PROGRESS, "Jobs that run now.", labels=LABELS)
    run = HistogramMetricFamily(RUN_SECONDS, "How long runs took.", labels=LABELS)
    queue = HistogramMetricFamily(
        QUEUE_SECONDS, "How long jobs waited from being due to their start.", labels=LABELS
    )
    for labels, floats in jobs.items():
        for name, place in _COUNTER_PLACES.items():
            counters[name].add_metric(labels, floats[place])
        run.add_metric(labels, *_histogram(floats, _RUN))
        queue.add_metric(labels, *_histogram(floats, _QUEUE))
        gauge.add_metric(labels, floats[_RUNNING] if running is None else running.get(labels, 0))
    yield from counters.values()
    yield gauge
    yield run
    yield queue


def _histogram(floats: Sequence[float], first: int) -> tuple[list[tuple[str, float]], float]:
    """The buckets that end at each bound, and the sum."""
    counts = accumulate(floats[first : first + len(_BOUNDS)])
    return list(zip(_BOUNDS, counts, strict=True)), floats[first + len(_BOUNDS)]


def labels_of(key: bytes) -> JobLabels:
    """The labels of an entry of a block that `Metrics.share` was given."""
    labels: JobLabels = msgspec.json.decode(key, type=JobLabels)
    return labels


def without_running(floats: Sequence[float]) -> list[float]:
    """What remains of a dead process' floats: it runs nothing any more."""
    return [*floats[:_RUNNING], 0.0]


def _show(labels: JobLabels, numbers: JobNumbers, block: Block) -> bool:
    key = msgspec.json.encode([label.encode(errors="replace").decode() for label in labels])
    shown = block.add(key, FLOATS)
    if shown is None:
        return False
    numbers.show(shown)
    return True
