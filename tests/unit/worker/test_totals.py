"""The numbers of jobs of several processes, as one."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry

from callboard.metrics import JobNumbers, Metrics
from callboard.metrics.blocks import BlockMemory
from callboard.worker.totals import Totals

LABELS = {"category": "jobs", "actor": "work", "priority": "low"}


def _process(totals: Totals, block: int) -> tuple[Metrics, JobNumbers]:
    metrics = Metrics(CollectorRegistry())
    metrics.share(totals.job_blocks.of(block))
    return metrics, metrics.of("jobs", "work", "low")


def _told(totals: Totals) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(totals)
    return registry


def _count(totals: Totals, name: str) -> float | None:
    return _told(totals).get_sample_value(f"callboard_{name}", LABELS)


def test_counters_and_times_are_summed() -> None:
    totals = Totals(2)
    for block in (0, 1):
        _, work = _process(totals, block)
        for _ in range(3):
            work.enqueued()
            work.started(0.5)
            work.ended(2.0, "succeeded")
        work.started(0.5)
        work.ended(2.0, "failed", "retried")
    names = ("enqueued", "started", "succeeded", "failed", "retried", "dead")
    assert [_count(totals, f"jobs_{name}_total") for name in names] == [6, 8, 6, 2, 2, 0]
    assert _count(totals, "job_run_seconds_sum") == 16
    assert _count(totals, "job_run_seconds_count") == 8
    assert _count(totals, "job_queue_seconds_sum") == 4


def test_counters_stay_and_gauges_fall_when_a_process_ends() -> None:
    totals = Totals(2)
    for block, running in ((0, 2), (1, 3)):
        metrics, work = _process(totals, block)
        work.started(0.0)
        metrics.in_progress = lambda running=running: [("jobs", "work", "low")] * running  # type: ignore[misc]
        metrics.show_running()
    assert _count(totals, "jobs_in_progress") == 5
    totals.fold(1)
    assert _count(totals, "jobs_in_progress") == 2
    assert _count(totals, "jobs_started_total") == 2
    totals.fold(0)
    assert _count(totals, "jobs_in_progress") == 0
    assert _count(totals, "jobs_started_total") == 2


def test_a_block_serves_one_process_after_another_and_nothing_grows() -> None:
    totals = Totals(1)
    sizes = set()
    for number in range(1, 21):
        _, work = _process(totals, 0)
        work.ended(1.0, "succeeded")
        assert _count(totals, "jobs_succeeded_total") == number
        sizes.add(sum(len(family.samples) for family in totals.collect()))
        totals.fold(0)
        assert _count(totals, "jobs_succeeded_total") == number
    assert len(sizes) == 1


def test_what_was_counted_before_the_numbers_were_shared_is_told() -> None:
    totals, metrics = Totals(1), Metrics(CollectorRegistry())
    work = metrics.of("jobs", "work", "low")
    work.enqueued()
    metrics.share(totals.job_blocks.of(0))
    work.enqueued()
    assert _count(totals, "jobs_enqueued_total") == 2


def test_jobs_whose_labels_find_no_room_are_counted_together_and_that_is_said_once() -> None:
    registry, memory = CollectorRegistry(), BlockMemory(1, 4096)
    metrics = Metrics(registry)
    metrics.share(memory.of(0))
    with structlog.testing.capture_logs() as logs:
        for number in range(50):
            for _ in range(2):
                metrics.of("jobs", f"work-{number}", "low").started(0.1)
    counted = dict(memory.of(0).read())
    other = registry.get_sample_value(
        "callboard_jobs_started_total", dict.fromkeys(("category", "actor", "priority"), "other")
    )
    assert other == 2 * (50 - (len(counted) - 1))
    assert len([line for line in logs if "no room" in line["event"]]) == 1


def test_nothing_is_told_of_others_while_there_is_room() -> None:
    totals = Totals(1)
    _process(totals, 0)
    assert {
        s.labels["actor"] for family in totals.collect() for s in family.samples if "actor" in s.labels
    } == {"work"}


def test_labels_of_any_text_are_told() -> None:
    totals, metrics = Totals(1), Metrics(CollectorRegistry())
    metrics.share(totals.job_blocks.of(0))
    for actor in ('a"b\n', "a\0b", "\u00e4", "\ud800"):
        metrics.of("jobs", actor, "low").enqueued()
    told = {s.labels["actor"] for family in totals.collect() for s in family.samples if s.value == 1}
    assert told == {'a"b\n', "a\0b", "\u00e4", "?"}
