"""Rates are read, and refused where they make no sense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dramatiq
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from callboard import ConcurrencyLimit, RateLimit
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import Outgoing
from callboard.brokers.stub import StubDriver
from callboard.errors import DeclarationError
from callboard.limits import key_of
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.testing import jobs_of
from middleware import stack


@pytest.fixture
def broker() -> Iterator[Broker]:
    store = open_store("memory:")
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    yield broker
    broker.close()


@pytest.mark.parametrize(
    ("rate", "every"),
    [("10/s", 0.1), ("100/minute", 0.6), ("5 / 10 minutes", 120), ("1000/day", 86.4), ("1/hour", 3600)],
)
def test_a_rate_is_a_number_of_starts_in_a_time(rate: str, every: float) -> None:
    assert RateLimit(rate).every == pytest.approx(every)


@pytest.mark.parametrize("rate", ["", "10", "0/s", "10/fortnight", "ten/s", "1/0 s", "-1/s"])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="a rate reads like '10/s'"):
        RateLimit(rate)


def test_slow_rates_are_evenly_spaced_and_fast_ones_by_the_tenth_of_a_second() -> None:
    assert RateLimit("100/minute").at_once == 1
    assert RateLimit("1000/s").at_once == 100
    assert RateLimit("100/minute", burst=7).at_once == 7
    with pytest.raises(ValueError, match="a burst is at least 1"):
        RateLimit("1/s", burst=0)


def test_a_key_is_a_field_or_made_of_the_payload() -> None:
    assert key_of(None, {"tenant": 7}) == ""
    assert key_of("tenant", {"tenant": 7}) == "7"
    assert key_of(lambda payload: payload["tenant"] % 2, {"tenant": 7}) == "1"


@pytest.mark.parametrize("places", [0, -1, True, "5"])
def test_what_is_no_number_of_places_is_refused(places: int) -> None:
    with pytest.raises(ValueError, match="a concurrency limit is a number of jobs"):
        ConcurrencyLimit(places)


def test_an_actor_with_a_rate_that_makes_no_sense_is_not_declared(broker: Broker) -> None:
    with pytest.raises(DeclarationError, match="the actor 'call': a rate reads like"):

        @ActorDecorator(broker)(category="jobs", rate="often")
        def call() -> None: ...

    with pytest.raises(DeclarationError, match="the actor 'call-again': a concurrency limit is"):

        @ActorDecorator(broker)(category="jobs", concurrency=0)
        def call_again() -> None: ...


class _Import(BaseModel):
    path: str
    tenant: str = "none"


def _put(broker: Broker, *args: Any) -> None:
    """A message as a stock Dramatiq sends it, which knows nothing of the actor."""
    message: dramatiq.Message[Any] = dramatiq.Message("jobs.medium", "call", args, {}, {})
    broker.driver.put([Outgoing("jobs.medium", message.encode(), message.message_id)], deadline=1)


def test_a_key_that_is_no_parameter_is_refused_when_the_actor_is_declared(broker: Broker) -> None:
    with pytest.raises(
        DeclarationError, match=r"'call': the key of its limit, 'tenant', is none of .*; known: n"
    ):

        @ActorDecorator(broker)(category="jobs", rate=RateLimit("1/s", key="tenant"))
        def call(n: int) -> None: ...

    with pytest.raises(DeclarationError, match=r"'load': the key of its limit, 'tenat', .*: path, tenant"):

        @ActorDecorator(broker)(_Import, category="jobs", concurrency=ConcurrencyLimit(1, key="tenat"))
        def load(file: _Import) -> None: ...

    with pytest.raises(DeclarationError, match=r"'count': the key of its limit, 'tenant', .*: n"):

        @dramatiq.actor(broker=broker, rate=RateLimit("1/s", key="tenant"))
        def count(n: int) -> None: ...

    @dramatiq.actor(broker=broker, rate=RateLimit("1/s", key="tenant"))
    def count_any(n: int, **fields: Any) -> None: ...


def test_a_field_that_was_not_sent_counts_with_its_default(broker: Broker) -> None:
    seen: list[Any] = []

    def key(payload: Mapping[str, Any]) -> str:
        seen.append(dict(payload))
        return str(payload["tenant"])

    @ActorDecorator(broker)(category="jobs", rate=RateLimit("1000/s", key=key), concurrency=1)
    def call(n: int, tenant: str = "none") -> None: ...

    @ActorDecorator(broker)(_Import, category="jobs", rate=RateLimit("1000/s", key=key))
    def load(file: _Import) -> None: ...

    @dramatiq.actor(broker=broker, rate=RateLimit("1000/s", key=key))
    def count(n: int, tenant: str = "none") -> None: ...

    with jobs_of(broker) as jobs:
        call.send(1)
        call.send(n=2, tenant="acme")
        load.send(path="a.csv")
        count.send(3)
        _put(broker, 4)
        assert jobs.drain().succeeded == 5
    assert seen == [
        {"n": 1, "tenant": "none"},
        {"n": 2, "tenant": "acme"},
        {"path": "a.csv", "tenant": "none"},
        {"n": 3, "tenant": "none"},
        {"n": 4, "tenant": "none"},
    ]


def test_a_job_that_lacks_the_field_of_the_key_is_told_so_by_its_run(broker: Broker) -> None:
    @ActorDecorator(broker)(category="jobs", concurrency=ConcurrencyLimit(1, key="tenant"))
    def call(tenant: str) -> None: ...

    with jobs_of(broker) as jobs:
        _put(broker)
        jobs.drain(fail=False)
        (letter,) = jobs.dead
    assert "'tenant' is missing" in letter.reason
