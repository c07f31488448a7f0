"""Rates are read, and refused where they make no sense."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from callboard import ConcurrencyLimit, RateLimit
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import DeclarationError
from callboard.limits import key_of
from callboard.metrics import Metrics
from callboard.store import open_store
from middleware import stack


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


def test_an_actor_with_a_rate_that_makes_no_sense_is_not_declared() -> None:
    store = open_store("memory:")
    broker = Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))
    with pytest.raises(DeclarationError, match="the actor 'call': a rate reads like"):

        @ActorDecorator(broker)(category="jobs", rate="often")
        def call() -> None: ...

    with pytest.raises(DeclarationError, match="the actor 'call-again': a concurrency limit is"):

        @ActorDecorator(broker)(category="jobs", concurrency=0)
        def call_again() -> None: ...

    broker.close()
