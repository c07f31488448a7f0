"""The numbers of all processes of a worker, as one: those that live, and what those that died have left.

To these belong the runners in which isolated jobs run (`callboard.metrics.runners`).

Counters never fall, as the last numbers of a process are added up before its block is another's. Gauges do: what a
dead process ran doesn't run any more.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from callboard.loggers import get_logger
from callboard.metrics import runners
from callboard.metrics.blocks import Block, BlockMemory
from callboard.metrics.jobs import OTHER, JobLabels, all_metrics, families, labels_of, without_running
from callboard.metrics.runners import JOB_BYTES, VALUE_BYTES, RunnerMemory
from callboard.metrics.values import Described, share_values

log = get_logger(__name__)

#: What a block says that isn't one, as two processes have written to it, or one went mad.
_UNREADABLE = (struct.error, ValueError, msgspec.MsgspecError)

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
        runners: How many runners each of them can have at once.

    Attributes:
        job_blocks: Where each process keeps the numbers of jobs.
        value_blocks: Where each keeps those of the application's own metrics.
        runners: Where their runners do; None where there are none.
    """

    def __init__(self, blocks: int, runners: int = 0) -> None:
        self.job_blocks = BlockMemory(blocks, JOB_BYTES)
        self.value_blocks = BlockMemory(blocks, VALUE_BYTES)
        self.runners = _runner_memory(blocks, runners) if runners else None
        self._jobs_of_dead: dict[JobLabels, list[float]] = {}
        self._values_of_dead: dict[_Series, _Number] = {}

    def join(self, block: int) -> None:
        """In a new process: keep this process' numbers in a block."""
        for metrics in all_metrics():
            metrics.share(self.job_blocks.of(block))
        share_values(self.value_blocks.of(block))
        runners.offer(None if self.runners is None else self.runners.of(block))

    def fold(self, block: int) -> None:
        """A process has ended, and its runners with it: add up what they have left, and empty its block."""
        self._add_up(self.job_blocks.of(block), self.value_blocks.of(block))
        if self.runners is not None:
            for place in self.runners.used_by(block):
                self._fold_runner(self.runners, place)

    def fold_runners(self) -> None:
        """Do the same for runners that have ended."""
        if self.runners is not None:
            self.runners.answer()
            for place in self.runners.left():
                self._fold_runner(self.runners, place)

    def _fold_runner(self, memory: RunnerMemory, place: int) -> None:
        with memory.opened(place) as (jobs, values):
            self._add_up(jobs, values)
        memory.free(place)

    def _add_up(self, jobs: Block, values: Block) -> None:
        try:
            for labels, floats in _jobs_in(jobs):
                _add(self._jobs_of_dead, labels, without_running(floats))
            for series, number in _numbers_in(values):
                if number.is_.lasts:
                    _add_number(self._values_of_dead, series, number)
        except _UNREADABLE:
            # Two processes in one block, as one began that had been given up: nothing the supervisor should die of.
            log.exception("what a process had counted can't be read")
        finally:
            jobs.clear()
            values.clear()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        self.fold_runners()
        jobs = {labels: list(floats) for labels, floats in self._jobs_of_dead.items()}
        for block in self.job_blocks:
            for labels, floats in _jobs_in(block):
                _add(jobs, labels, floats)
        values = {
            series: _Number(number.is_, number.value, number.set_at)
            for series, number in self._values_of_dead.items()
        }
        for block in self.value_blocks:
            for series, number in _numbers_in(block):
                _add_number(values, series, number)
        self._add_runners(jobs, values)
        if not any(jobs.get(OTHER, ())):
            jobs.pop(OTHER, None)
        yield from families(jobs)
        yield from _families_of_values(values)

    def _add_runners(self, jobs: dict[JobLabels, list[float]], values: dict[_Series, _Number]) -> None:
        """What runners that live have counted. One whose job writes all over its memory is left out."""
        memory = self.runners
        for place in memory.taken() if memory is not None else ():
            assert memory is not None
            with memory.opened(place) as (job_block, value_block), suppress(*_UNREADABLE):
                new_jobs, new_values = list(_jobs_in(job_block)), list(_numbers_in(value_block))
                for labels, floats in new_jobs:
                    _add(jobs, labels, floats)
                for series, number in new_values:
                    _add_number(values, series, number)


def _runner_memory(blocks: int, places: int) -> RunnerMemory | None:
    if not sys.platform.startswith("linux"):  # there, isolated jobs run in the worker's own process
        return None
    try:
        return RunnerMemory(blocks, places)
    except OSError as error:
        log.warning("no memory for the metrics of isolated jobs, they aren't counted", error=str(error))
        return None


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
