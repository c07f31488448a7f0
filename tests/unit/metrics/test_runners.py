"""The numbers of runners: who has which place, and what becomes of what lies there."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, values

from callboard.metrics import Metrics, runners
from callboard.metrics import values as values_module
from callboard.metrics.runners import RunnerPlaces
from callboard.metrics.values import keep_shareable
from callboard.worker.totals import Totals

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolated jobs need Linux")

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def fresh(monkeypatch: Patch) -> Iterator[None]:
    """As in a nursery before it loads the application; afterwards everything is as it was."""
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)
    monkeypatch.setattr(values_module, "_block", None)
    monkeypatch.setattr(values_module, "_full", False)
    monkeypatch.setattr(runners, "_jobs", None)
    monkeypatch.setattr(runners, "all_metrics", list)  # not those of other tests
    keep_shareable()
    with monkeypatch.context() as patch:
        patch.setattr(values_module, "_places", {})
        yield


@pytest.fixture
def totals() -> Totals:
    return Totals(2, runners=3)


def _places(totals: Totals, block: int = 0) -> RunnerPlaces:
    assert totals.runners is not None
    return totals.runners.of(block)


def _run(places: RunnerPlaces, monkeypatch: Patch, sales: int, is_open: int = 0) -> int:
    """A runner that counts; returns its place."""
    place = places.take()
    assert place is not None
    monkeypatch.setattr(values_module, "_places", {})
    runners.join(places.file, place)
    registry = CollectorRegistry()
    Counter("shop_sales", "Sales.", registry=registry).inc(sales)
    Gauge("shop_open", "Open.", registry=registry).set(is_open)
    Gauge("shop_biggest", "The biggest.", registry=registry, multiprocess_mode="max").set(sales)
    return place


def _told(totals: Totals, name: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(totals)
    return registry.get_sample_value(name)


def test_runners_that_live_and_that_ended_are_summed_and_gauges_are_of_those_that_live(
    totals: Totals, monkeypatch: Patch
) -> None:
    places, others = _places(totals, 0), _places(totals, 1)
    first = _run(places, monkeypatch, sales=5, is_open=1)
    _run(others, monkeypatch, sales=3, is_open=1)
    assert (_told(totals, "shop_sales_total"), _told(totals, "shop_open")) == (8, 2)
    places.leave(first)
    assert (_told(totals, "shop_sales_total"), _told(totals, "shop_open")) == (8, 1)
    assert _told(totals, "shop_biggest") == 5
    totals.fold(1)  # the worker process of the other runner was killed
    assert (_told(totals, "shop_sales_total"), _told(totals, "shop_open")) == (8, None)


def test_many_runners_one_after_another_are_summed_in_few_places(totals: Totals, monkeypatch: Patch) -> None:
    places, used = _places(totals), set()
    for number in range(1, 31):
        place = _run(places, monkeypatch, sales=1)
        used.add(place)
        places.leave(place)
        totals.fold_runners()
        assert _told(totals, "shop_sales_total") == number
    assert used == {0, 1, 2}
    assert totals.runners is not None
    assert totals.runners.taken() == totals.runners.left() == []


def test_whoever_finds_no_place_waits_for_one_and_the_supervisor_is_woken(
    totals: Totals, monkeypatch: Patch
) -> None:
    assert totals.runners is not None
    places = _places(totals)
    taken = [places.take() for _ in range(3)]
    assert None not in taken
    places.leave(0)
    assert select.select([totals.runners.bell], [], [], 0)[0], "fewer than half are free"
    totals.fold_runners()
    assert not select.select([totals.runners.bell], [], [], 0)[0]

    monkeypatch.setattr("time.sleep", lambda _: totals.fold_runners())  # it looks while we wait
    assert places.take() == 0
    places.leave(2)
    assert places.take() == 2


def test_a_runner_that_gets_no_place_isn_t_counted_and_that_is_said_once(
    totals: Totals, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(runners, "_PATIENCE", 0.0)
    places = _places(totals)
    with structlog.testing.capture_logs() as logs:
        assert [places.take() for _ in range(5)] == [0, 1, 2, None, None]
    assert [line["event"] for line in logs] == [
        "no room for the metrics of more isolated jobs at once, some aren't counted"
    ]


@pytest.mark.parametrize("nonsense", [b"\xff" * 4096, b"\x40" + b"\0" * 7 + b"\x01\0\0\0" * 1000])
def test_a_job_that_writes_all_over_its_memory_spoils_its_own_numbers_alone(
    nonsense: bytes, totals: Totals, monkeypatch: Patch
) -> None:
    assert totals.runners is not None
    places = _places(totals)
    _run(places, monkeypatch, sales=5)
    mad = _run(places, monkeypatch, sales=3)
    with totals.runners.opened(mad) as (jobs, numbers):
        for block in (jobs, numbers):
            start = block._start
            block._memory[start : start + len(nonsense)] = nonsense
    assert _told(totals, "shop_sales_total") == 5
    places.leave(mad)
    assert _told(totals, "shop_sales_total") == 5
    for number in range(1, 4):  # the last is where the mad one was
        places.leave(_run(places, monkeypatch, sales=1))
        assert _told(totals, "shop_sales_total") == 5 + number


def test_a_job_that_writes_to_every_open_file_or_cuts_it_short_spoils_nothing(
    totals: Totals, monkeypatch: Patch
) -> None:
    places = _places(totals)
    _run(places, monkeypatch, sales=5)
    with pytest.raises(PermissionError):
        os.write(places.file, b"nonsense" * 1000)
    with pytest.raises(PermissionError):
        os.ftruncate(places.file, 0)
    assert _told(totals, "shop_sales_total") == 5


def test_jobs_that_a_runner_sends_are_counted_also_if_it_loads_the_application_itself(
    totals: Totals, monkeypatch: Patch
) -> None:
    loaded: list[Metrics] = []
    monkeypatch.setattr(runners, "all_metrics", lambda: loaded)
    loaded.append(Metrics(CollectorRegistry()))
    places = _places(totals)
    place = places.take()
    assert place is not None
    runners.join(places.file, place)
    loaded.append(Metrics(CollectorRegistry()))
    for _ in range(2):
        runners.join_loaded()
    for metrics in loaded:
        metrics.of("jobs", "work", "low").enqueued()
    registry = CollectorRegistry()
    registry.register(totals)
    labels = {"category": "jobs", "actor": "work", "priority": "low"}
    assert registry.get_sample_value("callboard_jobs_enqueued_total", labels) == 2


def test_where_nobody_looks_runners_get_no_place() -> None:
    assert Totals(2).runners is None
    assert runners.offered() is None
