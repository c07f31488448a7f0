"""An application's own metrics, shared."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest, values

from callboard.metrics import Metrics
from callboard.metrics import values as values_module
from callboard.metrics.blocks import BlockMemory
from callboard.metrics.values import keep_shareable, share_values
from callboard.worker.totals import Totals


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker before it loads the application; afterwards everything is as it was."""
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)
    monkeypatch.setattr(values_module, "_block", None)
    monkeypatch.setattr(values_module, "_places", {})
    monkeypatch.setattr(values_module, "_full", False)
    keep_shareable()


Sell = Callable[[str, float], None]


def _shop(registry: CollectorRegistry) -> Sell:
    """Metrics as an actor's module has them, and a job that counts."""
    sales = Counter("shop_sales", "Sales.", ["kind"], registry=registry)
    seconds = Histogram("shop_seconds", "Seconds.", ["kind"], buckets=(1, 2), registry=registry)
    sizes = Summary("shop_sizes", "Sizes.", registry=registry)

    def sell(kind: str, value: float) -> None:
        sales.labels(kind).inc(value)
        seconds.labels(kind).observe(value)
        sizes.observe(value)

    return sell


def _as_process(totals: Totals, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this is the process that has the block."""
    monkeypatch.setattr(values_module, "_places", {})
    share_values(totals.value_blocks.of(block))


def _told(totals: Totals) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(totals)
    return registry


def test_counters_histograms_and_summaries_are_summed_over_processes_dead_and_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    totals = Totals(4)
    for block, amount in enumerate((1.0, 2.0, 3.0)):
        _as_process(totals, block, monkeypatch)
        _shop(CollectorRegistry())("book", amount)
    totals.fold(1)
    totals.fold(2)
    told = _told(totals)
    assert told.get_sample_value("shop_sales_total", {"kind": "book"}) == 6
    assert told.get_sample_value("shop_seconds_sum", {"kind": "book"}) == 6
    assert told.get_sample_value("shop_seconds_count", {"kind": "book"}) == 3
    buckets = [
        told.get_sample_value("shop_seconds_bucket", {"kind": "book", "le": bound})
        for bound in ("1.0", "2.0", "+Inf")
    ]
    assert buckets == [1, 2, 3]
    assert told.get_sample_value("shop_sizes_count") == 3
    assert told.get_sample_value("shop_sizes_sum") == 6


def test_a_scrape_looks_like_prometheus_client_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    totals, own = Totals(1), CollectorRegistry()
    _as_process(totals, 0, monkeypatch)
    sell = _shop(own)
    sell("book", 1.5)
    sell("pen", 0.5)

    def lines(registry: CollectorRegistry) -> set[str]:
        text = generate_latest(registry).decode().splitlines()
        return {line for line in text if "shop_" in line and "_created" not in line}

    assert lines(_told(totals)) == lines(own)


@pytest.mark.parametrize(
    ("mode", "both", "one"),
    [("all", 7, 3), ("livesum", 7, 3), ("max", 4, 4), ("livemax", 4, 3), ("min", 3, 3), ("mostrecent", 4, 4)],
)
def test_gauges_are_summed_over_processes_that_live_unless_they_say_how(
    mode: str, both: float, one: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = Totals(2)
    for block, value in enumerate((3, 4)):
        _as_process(totals, block, monkeypatch)
        Gauge("shop_open", "Open.", registry=CollectorRegistry(), multiprocess_mode=mode).set(value)  # type: ignore[arg-type]
    assert _told(totals).get_sample_value("shop_open") == both
    totals.fold(1)
    assert _told(totals).get_sample_value("shop_open") == one


def test_metrics_made_before_the_fork_are_shared_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    totals, own = Totals(1), CollectorRegistry()
    gauge = Gauge("shop_open", "Open.", registry=own)
    gauge.set(1)
    counter = Counter("shop_sales", "Sales.", registry=own)
    share_values(totals.value_blocks.of(0))
    counter.inc(5)
    told = _told(totals)
    assert (told.get_sample_value("shop_open"), told.get_sample_value("shop_sales_total")) == (1, 5)
    assert own.get_sample_value("shop_sales_total") == 5


def test_what_finds_no_room_counts_on_in_its_process() -> None:
    memory, own = BlockMemory(1, 4096), CollectorRegistry()
    share_values(memory.of(0))
    counter = Counter("shop_sales", "Sales.", ["kind"], registry=own)
    for kind in range(100):
        counter.labels(str(kind)).inc()
    assert 0 < len(list(memory.of(0).read())) < 100
    assert all(own.get_sample_value("shop_sales_total", {"kind": str(kind)}) == 1 for kind in range(100))


def test_labels_that_are_removed_and_used_again_take_no_more_room() -> None:
    memory, gauge = BlockMemory(1, 4096), Gauge("shop_open", "Open.", ["kind"], registry=CollectorRegistry())
    share_values(memory.of(0))
    for number in range(200):
        gauge.clear()
        gauge.labels("book").set(number)
    assert [floats[0] for _, floats in memory.of(0).read()] == [199]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_a_job_forks_leaves_its_parent_s_numbers_alone() -> None:
    totals, metrics = Totals(1), Metrics(CollectorRegistry())
    metrics.share(totals.job_blocks.of(0))
    share_values(totals.value_blocks.of(0))
    counter = Counter("shop_sales", "Sales.", registry=CollectorRegistry())
    counter.inc(2)
    metrics.of("jobs", "work", "low").enqueued()
    pid = os.fork()
    if pid == 0:
        try:
            counter.inc()
            metrics.of("jobs", "work", "low").enqueued()
            metrics.of("jobs", "more", "low").enqueued()
            Counter("shop_more", "More.", registry=CollectorRegistry()).inc()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    told = _told(totals)
    assert told.get_sample_value("shop_sales_total") == 2
    assert told.get_sample_value("shop_more_total") is None
    assert len(list(totals.job_blocks.of(0).read())) == 2, "work, and others"
    counter.inc()
    assert _told(totals).get_sample_value("shop_sales_total") == 3


def test_whoever_wants_prometheus_client_s_own_files_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type("Theirs", (values.MutexValue,), {})
    monkeypatch.setattr(values, "ValueClass", theirs)
    keep_shareable()
    assert values.ValueClass is theirs
