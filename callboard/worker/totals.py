"""The numbers of all processes of a worker, as one: those that live, and what those that died have left.

Counters never fall, as the last numbers of a process are added up before its block is another's. Gauges do: what a
dead process ran doesn't run any more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from callboard.loggers import get_logger
from callboard.metrics.blocks import Block, BlockMemory
from callboard.metrics.jobs import OTHER, JobLabels, all_metrics, families, labels_of, without_running
from callboard.metrics.values import Described, share_values

log = get_logger(__name__)

#: What a process has room for: some 600 actors, times their priorities; some 5,000 numbers of the application's.
_JOB_BYTES, _VALUE_BYTES = 1 << 18, 1 << 20

_BOUND: Callable[[float], str] = floatToGoString  # it has no annotations

_Labels = tuple[tuple[str, str], ...]
#: A family's name, a sample's name, its labels.
_Series = tuple[str, str, _Labels]


@dataclass(slots=True)
class _Number:
    """A number of the application's own, of one process or of several."""

    is_: Described
    value: float
    set_at: float

    def add(self, other: _Number) -> None:
        """Take in another process' number."""
        mode = other.is_.mode.removeprefix("live")
        if mode == "min":
            self.value = min(self.value, other.value)
        elif mode == "max":
            self.value = max(self.value, other.value)
        elif mode == "mostrecent":
            if other.set_at >= self.set_at:
                self.value, self.set_at = other.value, other.set_at
        else:
            self.value += other.value
        self.is_ = other.is_


class Totals(Collector):
    """The numbers of a worker's processes. Made before they are forked.

    Args:
        blocks: How many processes there can be at once.

    Attributes:
        job_blocks: Where each process keeps the numbers of jobs.
        value_blocks: Where each keeps those of the application's own metrics.
    """

    def __init__(self, blocks: int) -> None:
        self.job_blocks = BlockMemory(blocks, _JOB_BYTES)
        self.value_blocks = BlockMemory(blocks, _VALUE_BYTES)
        self._jobs_of_dead: dict[JobLabels, list[float]] = {}
        self._values_of_dead: dict[_Series, _Number] = {}

    def join(self, block: int) -> None:
        """In a new process: keep this process' numbers in a block."""
        for metrics in all_metrics():
            metrics.share(self.job_blocks.of(block))
        share_values(self.value_blocks.of(block))

    def fold(self, block: int) -> None:
        """A process has ended: add up what it has left, and empty its block."""
        jobs, values = self.job_blocks.of(block), self.value_blocks.of(block)
        try:
            for labels, floats in _jobs_in(jobs):
                _add(self._jobs_of_dead, labels, without_running(floats))
            for series, number in _numbers_in(values):
                if number.is_.lasts:
                    _add_number(self._values_of_dead, series, number)
        except (struct.error, ValueError, msgspec.MsgspecError):
            # Two processes in one block, as one began that had been given up: nothing the supervisor should die of.
            log.exception("what a process had counted can't be read")
        finally:
            jobs.clear()
            values.clear()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        jobs = {labels: list(floats) for labels, floats in self._jobs_of_dead.items()}
        for block in self.job_blocks:
            for labels, floats in _jobs_in(block):
                _add(jobs, labels, floats)
        if not any(jobs.get(OTHER, ())):
            jobs.pop(OTHER, None)
        yield from families(jobs)
        values = {
            series: _Number(number.is_, number.value, number.set_at)
            for series, number in self._values_of_dead.items()
        }
        for block in self.value_blocks:
            for series, number in _numbers_in(block):
                _add_number(values, series, number)
        yield from _families_of_values(values)


def _jobs_in(block: Block) -> Iterator[tuple[JobLabels, tuple[float, ...]]]:
    return ((labels_of(key), floats) for key, floats in block.read())


def _add(jobs: dict[JobLabels, list[float]], labels: JobLabels, floats: Iterable[float]) -> None:
    known = jobs.get(labels)
    jobs[labels] = list(floats) if known is None else [a + b for a, b in zip(known, floats, strict=True)]


def _numbers_in(block: Block) -> Iterator[tuple[_Series, _Number]]:
    for key, (value, set_at) in block.read():
        described = msgspec.json.decode(key, type=Described)
        yield (described.family, described.sample, described.labels), _Number(described, value, set_at)


def _add_number(values: dict[_Series, _Number], series: _Series, number: _Number) -> None:
    known = values.setdefault(series, number)
    if known is not number:
        known.add(number)


def _families_of_values(values: dict[_Series, _Number]) -> Iterator[Metric]:
    by_family: dict[str, list[tuple[str, _Labels, _Number]]] = {}
    for (family, sample, labels), number in values.items():
        by_family.setdefault(family, []).append((sample, labels, number))
    for family, numbers in by_family.items():
        newest = numbers[-1][2].is_
        metric = Metric(family, newest.help, newest.kind)
        buckets: dict[_Labels, dict[float, float]] = {}
        for sample, labels, number in numbers:
            if number.is_.kind != newest.kind:
                continue  # the application was loaded anew, and the metric is of another type now
            if newest.kind == "histogram" and sample.endswith("_bucket"):
                without = tuple(label for label in labels if label[0] != "le")
                buckets.setdefault(without, {})[float(dict(labels)["le"])] = number.value
            else:
                metric.add_sample(sample, dict(labels), number.value)
        for labels, counts in buckets.items():
            count = 0.0
            for bound, more in sorted(counts.items()):
                count += more
                metric.add_sample(f"{family}_bucket", {**dict(labels), "le": _BOUND(bound)}, count)
            metric.add_sample(f"{family}_count", dict(labels), count)
        yield metric
