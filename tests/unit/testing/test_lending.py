"""A broker that is lent to a test runs jobs as a real worker does, and gets everything back."""

from __future__ import annotations

from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from dramatiq import Middleware

from callboard import Permanent, State
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import JobNotFound
from callboard.testing import Drained, jobs_of
from callboard.worker.worker import Worker
from tests.unit.testing.conftest import new_broker


class Spy(Middleware):
    """Writes down every hook that is called for a job."""

    HOOKS = ("process_message", "skip_message", "ack", "nack", "enqueue")

    def __init__(self) -> None:
        self.calls: list[str] = []


def _spying(name: str) -> Any:
    def hook(self: Spy, broker: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        if message.actor_name == "work":
            fate = getattr(message, "disposition", None)
            self.calls.append(f"{name} {message.queue_name} {type(fate).__name__} {sorted(kwargs)}")

    return hook


for _signal in Spy.HOOKS:
    for _when in ("before", "after"):
        if hasattr(Middleware, f"{_when}_{_signal}"):
            setattr(Spy, f"{_when}_{_signal}", _spying(f"{_when}_{_signal}"))


def _send_work(broker: Broker) -> None:
    actor = ActorDecorator(broker)

    @actor(category="jobs")
    def work(how: str) -> None:
        if how == "fails":
            raise RuntimeError
        if how == "dies":
            raise Permanent("no")

    for how in ("succeeds", "fails", "dies"):
        work.send(how)
    work.using(expires=datetime(2020, 1, 1, tzinfo=UTC)).send("expires")


def test_a_run_passes_the_same_hooks_as_in_a_real_worker() -> None:
    real, inline = Spy(), Spy()
    broker = new_broker()
    broker.add_middleware(real)
    _send_work(broker)
    worker = Worker(broker, ["jobs.medium"], threads=1)
    worker.start()
    assert isinstance(broker.driver, StubDriver)
    queue, changed = broker.driver._queue("jobs.medium"), broker.driver.changed
    with changed:
        assert changed.wait_for(lambda: not queue.ready and not queue.claimed, 30)
    worker.stop()
    broker.close()

    broker = new_broker()
    broker.add_middleware(inline)
    with jobs_of(broker) as jobs:
        _send_work(broker)
        jobs.drain(advance=False, fail=False)
    assert inline.calls == real.calls
    called = {call.partition(" ")[0] for call in inline.calls}
    assert called >= {
        "before_enqueue",
        "after_process_message",
        "after_skip_message",
        "after_ack",
        "after_nack",
    }


def test_a_broker_gets_everything_back() -> None:
    broker = new_broker()
    actor = ActorDecorator(broker)
    before = {**vars(broker), "middleware": list(broker.middleware), "queues": None}
    backend: Any = broker.get_results_backend()
    own_store = backend.store
    module = ModuleType("lately")

    with jobs_of(broker) as jobs:
        assert broker.driver is not before["driver"]
        assert backend.store is broker.store is not own_store
        broker.add_middleware(Spy())

        @actor(category="inner")
        def local() -> None: ...

        local.send()
        exec("def lasting(): ...", vars(module))
        lasting = actor(category="lately")(module.lasting)
        jobs.drain()
    assert {**vars(broker), "queues": None, "_hooks": None} == {**before, "_hooks": None}
    assert backend.store is own_store
    assert broker.actors == {"lasting": lasting}
    assert {"inner.low", "lately.dead"} <= set(broker.driver.queues())
    assert broker.driver.counts(["inner.medium"])["inner.medium"].ready == 0
    broker.close()


def test_a_test_sees_nothing_of_the_one_before(callboard_broker: Broker) -> None:
    for _ in range(2):
        with jobs_of(callboard_broker) as jobs:
            actor = ActorDecorator(callboard_broker)

            @actor(category="jobs")
            def local() -> None: ...

            assert not jobs.waiting
            assert not jobs.dead
            local.using(job_id="the-same", unique="k").send()
            assert jobs.state("the-same") is State.QUEUED


def test_a_broker_without_a_store_has_none_in_a_test() -> None:
    broker = Broker(StubDriver())
    with jobs_of(broker) as jobs:
        actor = ActorDecorator(broker)

        @actor(category="jobs")
        def work() -> str:
            return "done"

        sent = work.send()
        report: Drained = jobs.drain()
        assert report.runs[0].result == "done"
        with pytest.raises(JobNotFound):
            jobs.state(sent)
