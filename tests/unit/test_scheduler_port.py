"""What a scheduler tells through its port."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from callboard import cron
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import PutError
from callboard.brokers.stub import StubDriver
from callboard.errors import NotQueued, SettingsError, StoreUnavailable
from callboard.metrics import SCHEDULER_METRICS, Metrics
from callboard.scheduler import Scheduler
from callboard.scheduler_port import SchedulerPort
from callboard.store import open_store
from callboard.worker.http_server import Address
from middleware.periodic import Periodic

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
PATIENCE = 60.0


class Night:
    """A scheduler of three schedules, its port, a clock that stands until it is moved, and someone who asks."""

    def __init__(self) -> None:
        self.now = NOON + 1
        self.driver = StubDriver(clock=self.clock)
        self.store = open_store("memory:")
        self.jobs = Metrics(CollectorRegistry())
        broker = Broker(self.driver, store=self.store, middleware=[Periodic()], clock=self.clock)

        @ActorDecorator(broker)(category="night", periodic=cron("*/10 * * * *"))
        def sweep() -> None: ...

        @ActorDecorator(broker)(category="night", periodic=cron("0 * * * *", overlap="skip"))
        def ring() -> None: ...

        @ActorDecorator(broker)(category="night", periodic=cron("30 12 * * *", misfire="skip"))
        def lock() -> None: ...

        self.scheduler = Scheduler(broker, clock=self.clock)
        self.port = SchedulerPort(
            Address("127.0.0.1", 0), self.scheduler.progress, jobs=self.jobs, clock=self.clock
        )

    def clock(self) -> float:
        return self.now

    def turn(self, seconds: float = 0.0) -> None:
        """What the scheduler does when so much time has passed."""
        self.now += seconds
        self.scheduler._meet_store()
        self.scheduler.serve()

    def ask(self, page: str) -> tuple[int, str]:
        answers: list[tuple[int, str]] = []

        def ask() -> None:
            url = f"http://{self.port.address}{page}"
            try:
                with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                    answers.append((answer.status, answer.read().decode()))
            except urllib.error.HTTPError as error:
                answers.append((error.code, error.read().decode()))
                error.close()

        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            self.port.wait([], 0.01)
        return answers[0]

    def told(self) -> dict[tuple[str, ...], float]:
        """All series by their names and labels."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.ask("/metrics")[1])
            for sample in family.samples
        }


@pytest.fixture
def night() -> Iterator[Night]:
    night = Night()
    yield night
    night.port.close()


def test_ticks_are_counted_by_what_became_of_them(night: Night) -> None:
    ticks = "callboard_scheduler_ticks_total"
    night.turn()
    told = night.told()
    outcomes = {series[2] for series in told if series[0] == ticks}
    assert outcomes == {"on_time", "caught_up", "missed", "overlap", "paused", "failed"}
    assert sum(told[series] for series in told if series[0] == ticks) == 0, "all are there from the beginning"

    night.turn(601)
    told = night.told()
    assert told[ticks, "sweep", "on_time"] == 1
    assert told["callboard_scheduler_lateness_seconds", "sweep"] == 2
    assert ("callboard_scheduler_lateness_seconds", "ring") not in told

    night.turn(7400)  # nobody looked at twelve ticks of one, two of another, one of the last
    told = night.told()
    assert told[ticks, "sweep", "caught_up"] == 1
    assert told[ticks, "sweep", "missed"] == 11
    assert (told[ticks, "ring", "missed"], told[ticks, "ring", "caught_up"]) == (1, 1)
    assert (told[ticks, "lock", "missed"], told[ticks, "lock", "caught_up"]) == (1, 0)
    assert told["callboard_scheduler_lateness_seconds", "sweep"] == night.now - (NOON + 13 * 600) == 202


def test_a_schedule_that_is_paused_is_told_before_and_after_its_ticks(night: Night) -> None:
    night.turn()
    assert night.told()["callboard_scheduler_paused", "sweep"] == 0
    night.store.pause_schedule("sweep", at=night.now, by="tester")
    night.turn(20)
    told = night.told()
    assert told["callboard_scheduler_paused", "sweep"] == 1
    assert told["callboard_scheduler_paused", "ring"] == 0
    night.turn(600)
    assert night.told()["callboard_scheduler_ticks_total", "sweep", "paused"] == 1
    night.store.pause_schedule("sweep", at=None)
    night.turn(20)
    assert night.told()["callboard_scheduler_paused", "sweep"] == 0


def test_every_metric_of_the_catalogue_is_told_and_so_are_the_jobs_that_it_sent(night: Night) -> None:
    night.jobs.of("night", "sweep", "medium").enqueued()
    night.turn(601)
    told = {series[0] for series in night.told()}
    names = {f"{name}_total" if kind == "counter" else name for name, (kind, *_) in SCHEDULER_METRICS.items()}
    assert names <= told
    assert night.told()["callboard_jobs_enqueued_total", "sweep", "night", "medium"] == 1


def test_it_is_healthy_while_it_looks_at_its_schedules_and_no_longer(night: Night) -> None:
    night.turn()
    night.now += 59
    assert night.ask("/healthz") == (200, "ok\n")
    assert night.told()["callboard_scheduler_looked_seconds",] == 59
    night.now += 2
    status, text = night.ask("/healthz")
    assert status == 503
    assert text.startswith("it hasn't looked at its schedules for 61 s\n")
    night.turn()
    assert night.ask("/healthz") == (200, "ok\n")


def test_a_long_round_is_progress_with_each_schedule(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    night.turn()
    night.now += 3600

    healthy = []

    def enqueue(message: object) -> None:
        healthy.append(night.ask("/healthz")[0])
        night.now += 55.0
        raise NotQueued("it takes its time", job_id="")

    monkeypatch.setattr(night.scheduler._broker, "enqueue", enqueue)
    night.turn()
    assert healthy == [200, 200]
    assert night.ask("/healthz") == (200, "ok\n")
    assert night.told()["callboard_scheduler_looked_seconds",] == 0


def test_without_its_store_it_is_not_ready_at_once_and_not_healthy_after_a_minute(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert night.ask("/readyz") == (503, "it hasn't looked at its schedules yet\n")
    assert night.ask("/healthz")[0] == 200
    night.turn()
    assert night.ask("/readyz") == (200, "ok\n")
    with monkeypatch.context() as patch:

        def away(*_: object, **__: object) -> None:
            raise StoreUnavailable("it burnt down")

        patch.setattr(night.store, "claim_key", away)
        night.turn(1)
        assert night.ask("/readyz") == (503, "the store doesn't answer: it burnt down\n")
        assert night.ask("/healthz")[0] == 200
        night.turn(60)
        assert night.ask("/healthz") == (503, "the store hasn't answered for 61 s: it burnt down\n")
    night.turn(1)
    assert night.ask("/healthz") == night.ask("/readyz") == (200, "ok\n")


def test_it_is_not_ready_while_the_broker_takes_no_jobs_but_healthy(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.turn()
    with monkeypatch.context() as patch:

        def away(*_: object, **__: object) -> None:
            raise PutError("it is on strike", not_queued=[])

        patch.setattr(night.driver, "put", away)
        for _ in range(7):
            night.turn(100)
        status, text = night.ask("/readyz")
        assert status == 503
        assert text.startswith("sweep can't be served: ")
        assert "it is on strike" in text
        assert night.ask("/healthz")[0] == 200
    night.turn(2)
    assert night.ask("/readyz") == (200, "ok\n")


def test_an_address_that_is_taken_is_said_with_the_setting_that_names_it(night: Night) -> None:
    with pytest.raises(SettingsError, match="with --http or CALLBOARD_SCHEDULER_HTTP"):
        SchedulerPort(night.port.address, night.scheduler.progress)
