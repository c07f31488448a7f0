"""Dead letters, quarantine and queues on the drivers that keep them: walks over real queues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry

from callboard import Permanent, Priority, State
from callboard.actor import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.brokers.driver import Outgoing
from callboard.envelope import Signer
from callboard.metrics import Metrics
from callboard.operations import Letters, Operations
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware import stack

PATIENCE = 30.0

Work = Callable[[Callable[[], bool]], None]


class Odd(Permanent):
    """One cause of death."""


class Even(Permanent):
    """Another."""


@pytest.fixture(params=["file", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the messages wait."""
    return str(request.getfixturevalue("amqp_url")) if request.param == "rabbitmq" else f"file:{tmp_path}"


@pytest.fixture
def broker(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    store = open_store("memory:")
    broker = Broker(
        open_driver(url),
        store=store,
        middleware=stack(store, metrics=Metrics(CollectorRegistry())),
        signer=Signer.parse("k1:0123456789abcdef"),
    )
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    yield broker
    broker.close()


@pytest.fixture
def operations(broker: Broker) -> Operations:
    return Operations(broker, who="ada")


@pytest.fixture
def broken() -> set[int]:
    """What `deliver` fails at."""
    return set()


@pytest.fixture
def deliver(broker: Broker, broken: set[int]) -> Any:
    """An actor that dies of whatever is broken."""

    @ActorDecorator(broker)(category="post", priority=Priority.HIGH)
    def deliver(number: int) -> None:
        if number in broken:
            raise Odd if number % 2 else Even

    return deliver


@pytest.fixture
def work(broker: Broker) -> Work:
    """Has a worker run until something holds, and stop."""

    def work(until: Callable[[], bool]) -> None:
        assert broker.recorder is not None
        worker = Worker(broker, ["post.high"], threads=2)
        worker.start()
        end = time.monotonic() + PATIENCE
        while not (broker.recorder.flush(PATIENCE) and until()):
            assert time.monotonic() < end, "it didn't come so far"
            time.sleep(0.02)
        worker.stop(grace=PATIENCE)
        broker.stopping.clear()

    return work


def _states(broker: Broker, ids: list[str]) -> set[State | None]:
    assert broker.store is not None
    records = [broker.store.get(job_id) for job_id in ids]
    return {record.state if record is not None else None for record in records}


def test_letters_are_listed_replayed_and_discarded(
    broker: Broker, operations: Operations, deliver: Any, broken: set[int], work: Work
) -> None:
    broken |= set(range(40))
    ids = [deliver.send(number).message_id for number in range(40)]
    work(lambda: operations.dead.counts() == {"post": 40} and operations.dead.unindexed() == 0)
    odd, even = sorted(operations.dead.causes(), key=lambda cause: cause.error, reverse=True)
    assert (odd.count, even.count) == (20, 20)

    # One letter twice, as a walk that is killed leaves it.
    (copied,) = [m for m in broker.driver.peek("post.dead", 1000) if ids[1].encode() in m.body]
    broker.driver.put([Outgoing("post.dead", copied.body, ids[1])], deadline=5)

    broken.clear()
    result = operations.dead.replay(Letters(fingerprint=odd.fingerprint))
    assert (len(result.job_ids), result.seen, result.merged) == (20, 41, 1)
    work(lambda: _states(broker, ids[1::2]) == {State.SUCCEEDED})

    assert operations.dead.replay(Letters(ids=[ids[0], "nobody"])).not_found == ["nobody"]
    work(lambda: _states(broker, ids[:1]) == {State.SUCCEEDED})
    assert len(operations.dead.discard(Letters()).job_ids) == 19
    assert operations.dead.counts() == {}
    assert _states(broker, ids[:2]) == {State.SUCCEEDED}
    assert _states(broker, ids[2::2]) == {State.DISCARDED}


def test_a_lost_index_is_built_again(
    broker: Broker,
    operations: Operations,
    deliver: Any,
    broken: set[int],
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken |= {1, 2}
    ids = [deliver.send(number).message_id for number in (1, 2)]
    work(lambda: _states(broker, ids) == {State.DEAD})
    before = operations.dead.search()
    monkeypatch.setattr(broker, "store", open_store("memory:"))
    operations = Operations(broker)

    why = operations.why(ids[0])
    assert why.known
    assert "its letter lies in post.dead" in why.sentence
    assert operations.dead.show(ids[1]).from_broker
    assert operations.dead.unindexed() == 2
    operations.dead.reindex()

    assert operations.dead.unindexed() == 0
    assert [(a.job_id, a.error, a.fingerprint) for a in operations.dead.search()] == [
        (b.job_id, b.error, b.fingerprint) for b in before
    ]
    assert operations.dead.counts() == {"post": 2}


def test_a_mended_letter_is_signed_and_runs(
    broker: Broker, operations: Operations, deliver: Any, broken: set[int], work: Work
) -> None:
    broken |= {1}
    job_id = deliver.send(1).message_id
    work(lambda: _states(broker, [job_id]) == {State.DEAD})

    operations.dead.replay(Letters(ids=[job_id]), payload={"number": 2})

    work(lambda: _states(broker, [job_id]) == {State.SUCCEEDED})


def test_a_purge_takes_what_waits_and_tells_the_records(
    broker: Broker, operations: Operations, deliver: Any
) -> None:
    ids = [deliver.send(number).message_id for number in range(30)]
    assert broker.recorder is not None
    assert broker.recorder.flush(PATIENCE)

    assert operations.queues.purge("post.high").count == 30

    assert _states(broker, ids) == {State.DISCARDED}
    (status,) = operations.queues.search("post.high")
    assert status.ready == 0


def test_a_message_in_quarantine_is_vouched_for_or_discarded(
    broker: Broker, operations: Operations, deliver: Any, work: Work
) -> None:
    unsigned = (
        b'{"queue_name": "post.high", "actor_name": "deliver", "args": [], "kwargs": {"number": 3}, '
        b'"options": {}, "message_id": "honest", "message_timestamp": 1}'
    )
    broker.driver.put([Outgoing("post.high", body, "?") for body in (unsigned, b"gibberish")], deadline=5)
    work(lambda: len(operations.quarantine.search()) == 2)
    suspects = {suspect.size: suspect.id for suspect in operations.quarantine.search()}

    assert operations.quarantine.replay(suspects[len(unsigned)]) == "honest"
    work(lambda: _states(broker, ["honest"]) == {State.SUCCEEDED})
    assert operations.quarantine.discard(None).count == 1
    assert operations.quarantine.search() == []


def test_why_tells_a_queue_that_nobody_consumes(broker: Broker, operations: Operations, deliver: Any) -> None:
    job_id = deliver.send(1).message_id
    assert broker.recorder is not None
    assert broker.recorder.flush(PATIENCE)

    assert "in post.high, and no worker consumes that queue" in operations.why(job_id).sentence
