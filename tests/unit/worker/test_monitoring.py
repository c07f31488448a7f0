"""What a worker tells through its port."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from callboard import Permanent
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import QueueCounts
from callboard.errors import BrokerUnavailable, StoreUnavailable
from callboard.operations.schedulers import say_alive, say_stopped
from callboard.worker.http_server import Address
from callboard.worker.monitoring import Monitoring, WorkerState, WorkerStates
from callboard.worker.observer import (
    BrokerSeen,
    Notice,
    Observer,
    QueueSeen,
    StoreSeen,
    see_broker,
    see_store,
)
from callboard.worker.worker import Worker

PATIENCE = 30.0
QUEUES = ("jobs.critical", "jobs.high", "jobs.medium", "jobs.low")


class Port:
    """Monitoring whose port is open, and someone who asks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.monitoring = Monitoring(
            blocks=2, processes=1, threads=2, stalled_after=60.0, clock=lambda: self.now
        )
        self.monitoring.open(Address("127.0.0.1", 0))
        assert self.monitoring._server is not None
        self._url = f"http://{self.monitoring._server.address}"

    def ask(self, page: str) -> tuple[int, str]:
        answers: list[tuple[int, str]] = []

        def ask() -> None:
            try:
                with urllib.request.urlopen(self._url + page, timeout=PATIENCE) as answer:
                    answers.append((answer.status, answer.read().decode()))
            except urllib.error.HTTPError as error:
                answers.append((error.code, error.read().decode()))
                error.close()

        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            self.monitoring.wait([], 0.01)
        return answers[0]

    def metrics(self) -> dict[str, Any]:
        """The series that aren't of jobs: by name, and by queue or category where there is such a label."""
        found: dict[str, Any] = {}
        for family in text_string_to_metric_families(self.ask("/metrics")[1]):
            for sample in family.samples:
                name = sample.labels.get("queue") or sample.labels.get("category")
                if name is None:
                    found[sample.name] = sample.value
                else:
                    found.setdefault(sample.name, {})[name] = sample.value
        return found

    def see(self, broker: BrokerSeen | None, store: StoreSeen | None) -> None:
        """As if the observer had seen this."""
        self.monitoring._observer.broker.put(broker, lasts=PATIENCE)
        self.monitoring._observer.store.put(store, lasts=PATIENCE)


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.monitoring.close()


def _seen(*, ready: int = 0, paused: bool = False) -> tuple[BrokerSeen, StoreSeen]:
    queue = QueueSeen("jobs.low", "jobs", "low", ready, 0, None, 1, None)
    store = StoreSeen(1, {"jobs.low": 1}, frozenset({"jobs.low"} if paused else ()), False, 0)
    return BrokerSeen([queue], {}, 0, 0), store


def test_what_all_workers_share_is_told(broker: Broker, actor: ActorDecorator, port: Port) -> None:
    @actor(category="jobs")
    def hopeless() -> None:
        raise Permanent("no")

    assert broker.store is not None
    hopeless.send()
    worker = Worker(broker, QUEUES, threads=1)
    worker.start()
    broker.join("jobs.medium", timeout=30_000)
    worker.stop()
    broker.store.pause("jobs.medium")
    broker.store.report_dropped(3, since=1.0, until=2.0)
    say_alive(broker.store, "a scheduler")
    hopeless.send()
    hopeless.send()
    port.see(see_broker(broker), see_store(broker))
    found = port.metrics()
    assert found["callboard_broker_up"] == found["callboard_store_up"] == 1
    assert found["callboard_queue_ready"] == {**dict.fromkeys(QUEUES, 0), "jobs.medium": 2}
    assert found["callboard_queue_paused"] == {**dict.fromkeys(QUEUES, 0), "jobs.medium": 1}
    assert found["callboard_queue_consumers"] == dict.fromkeys(QUEUES, 0)
    assert found["callboard_dead_letters"] == {"jobs": 1}
    assert found["callboard_records_dropped_total"] == 3
    assert found["callboard_scheduler_up"] == 1
    assert found["callboard_workers"] == found["callboard_quarantined"] == found["callboard_schedules"] == 0


def test_a_scheduler_that_stops_isn_t_up_any_more(broker: Broker) -> None:
    assert broker.store is not None
    say_alive(broker.store, "one")
    say_alive(broker.store, "another")
    say_stopped(broker.store, "another")
    assert (see_store(broker) or pytest.fail()).scheduler_lives
    say_stopped(broker.store, "one")
    assert not (see_store(broker) or pytest.fail()).scheduler_lives


def test_while_broker_and_store_are_away_that_is_told_and_nothing_of_theirs(port: Port) -> None:
    port.see(*_seen())
    port.see(None, None)
    found = port.metrics()
    assert found["callboard_broker_up"] == found["callboard_store_up"] == 0
    assert {name for name in found if "queue_" in name or "dead_" in name or "dropped" in name} == set()


def test_one_that_is_away_hides_nothing_of_the_other(port: Port) -> None:
    broker, store = _seen(ready=4)
    port.see(broker, None)
    assert port.metrics()["callboard_queue_ready"] == {"jobs.low": 4}
    assert "callboard_queue_paused" not in port.metrics()
    port.see(None, store)
    assert port.metrics()["callboard_workers"] == 1


def test_the_observer_tells_that_they_are_away(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, stop = Observer(interval=0.01), threading.Event()
    away = threading.Thread(target=observer.run, args=(broker, stop))
    away.start()
    try:
        assert _until(lambda: observer.broker.get() and observer.store.get())
        monkeypatch.setattr(broker.driver, "counts", _raise(BrokerUnavailable("gone")))
        monkeypatch.setattr(broker.store, "workers", _raise(StoreUnavailable("gone")))
        assert _until(lambda: observer.broker.get() is None and observer.store.get() is None)
        monkeypatch.undo()
        assert _until(lambda: observer.broker.get() and observer.store.get())
    finally:
        stop.set()
        away.join()


def test_what_was_seen_long_ago_isn_t_believed() -> None:
    now = [0.0]
    notice = Notice(StoreSeen, clock=lambda: now[0])
    assert notice.get() is None
    _, store = _seen()
    notice.put(store, lasts=20.0)
    assert notice.get() == store
    now[0] = 21.0
    assert notice.get() is None


def test_the_processes_are_told(port: Port) -> None:
    port.monitoring.look(WorkerStates([WorkerState(7, 0, 1, False), WorkerState(8, 1, 0, True)], QUEUES))
    port.monitoring.ended(9, 1, died=True)
    found = port.metrics()
    names = ("processes", "processes_wanted", "threads", "process_deaths_total", "process_stalls_total")
    assert [found[f"callboard_worker_{name}"] for name in names] == [1, 1, 2, 1, 0]


def test_a_worker_is_ready_when_its_processes_consume_and_the_broker_answers(port: Port) -> None:
    assert port.ask("/readyz") == (503, "0 of 1 processes are ready\nthe broker can't be reached\n")
    states = WorkerStates([WorkerState(7, 0, 0, False)], QUEUES)
    port.see(*_seen())
    port.monitoring.look(states)
    assert port.ask("/readyz") == (503, "process 7 doesn't consume\n")
    port.monitoring._pulses.of(0).turned(0)
    port.now += 1
    port.monitoring.look(states)
    assert port.ask("/readyz") == (200, "ok\n")
    port.see(None, None)
    assert port.ask("/readyz") == (503, "the broker can't be reached\n")
    port.monitoring.look(WorkerStates([WorkerState(7, 0, 0, True)], QUEUES, stopping=True))
    assert port.ask("/readyz") == (503, "the worker stops\n")


def test_a_worker_without_a_process_is_well_for_half_a_minute(port: Port) -> None:
    states = WorkerStates([WorkerState(7, 0, 0, False)], QUEUES)
    port.monitoring.look(states)
    port.now += 29
    port.monitoring.look(WorkerStates())
    assert port.ask("/healthz") == (200, "ok\n")
    port.now += 3
    port.monitoring.look(WorkerStates())
    assert port.ask("/healthz") == (503, "no process has been ready for 32 s\n")
    port.monitoring.look(states)
    assert port.ask("/healthz") == (200, "ok\n")


@pytest.mark.parametrize(
    ("ready", "paused", "running", "known", "ill"),
    [
        (5, False, 0, True, True),
        (5, False, 1, True, True),
        (5, False, 2, True, False),  # all its threads are busy
        (5, True, 0, True, False),  # the queue is paused
        (0, False, 0, True, False),  # nothing waits
        (5, False, 0, False, False),  # nobody knows: the broker is away
    ],
)
def test_a_worker_is_ill_when_a_process_claims_nothing_although_messages_wait(
    ready: int, paused: bool, running: int, known: bool, ill: bool, port: Port
) -> None:
    for _ in range(70):
        port.see(*(_seen(ready=ready, paused=paused) if known else (None, None)))
        lost = port.monitoring.look(WorkerStates([WorkerState(7, 0, running, False)], QUEUES))
        port.monitoring._pulses.of(0).beat()
        if lost:
            break
        port.now += 1
    assert lost == ([7] if ill else [])
    told = "process 7 claims nothing although messages wait\n"
    assert port.ask("/healthz") == ((503, told) if ill else (200, "ok\n"))
    assert port.metrics()["callboard_worker_processes_stalled"] == int(ill)
    assert port.monitoring.look(WorkerStates([WorkerState(7, 0, running, False)], QUEUES)) == [], (
        "once is enough"
    )
    port.monitoring.ended(7, 0, died=False)
    port.monitoring.look(WorkerStates([WorkerState(8, 1, 0, False)], QUEUES))
    assert port.ask("/healthz") == (200, "ok\n")
    assert port.metrics()["callboard_worker_process_stalls_total"] == int(ill)


def test_queues_that_a_worker_doesn_t_consume_don_t_make_it_ill(port: Port) -> None:
    for _ in range(70):
        port.see(*_seen(ready=5))
        assert port.monitoring.look(WorkerStates([WorkerState(7, 0, 0, False)], ["jobs.high"])) == []
        port.now += 1
    assert port.ask("/healthz")[0] == 200


def test_a_process_for_urgent_jobs_is_judged_by_its_own_queues_and_threads(port: Port) -> None:
    reserved = WorkerState(8, 1, 1, False, queues=["jobs.critical"], threads=1)
    for _ in range(70):
        port.see(*_seen(ready=5))
        assert 8 not in port.monitoring.look(WorkerStates([WorkerState(7, 0, 2, False), reserved], QUEUES))
        port.now += 1
    assert port.ask("/healthz")[0] == 200
    assert port.metrics()["callboard_worker_threads"] == 3


def test_what_the_driver_can_t_tell_is_left_out(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, port: Port
) -> None:
    monkeypatch.setattr(
        broker.driver, "counts", lambda names: {"jobs.low": QueueCounts(ready=1, delayed=None, oldest=None)}
    )
    port.see(see_broker(broker), see_store(broker))
    found = port.metrics()
    assert found["callboard_queue_ready"] == {"jobs.low": 1}
    assert "callboard_queue_delayed" not in found
    assert "callboard_queue_oldest_seconds" not in found


def _raise(error: Exception) -> Any:
    def raise_it(*_: Any, **__: Any) -> None:
        raise error

    return raise_it


def _until(holds: Any) -> bool:
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
