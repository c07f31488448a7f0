"""Sending by name, importing no actor."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import pytest

from callboard import Priority
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.client import Client
from callboard.envelope import Signer
from callboard.errors import InvalidPayload, PayloadTooLarge, SettingsError, UnknownActor
from callboard.store import open_store
from middleware.expiry import Expiry


class Pair:
    """A producer that knows no actor, and an application that does, on the same queues."""

    def __init__(self) -> None:
        self.driver = StubDriver()
        self.store = open_store("memory:")
        self.application = Broker(self.driver, store=self.store, middleware=[Expiry()])
        self.client = Client(Broker(self.driver, store=self.store))

    def received(self, queue: str) -> Any:
        """The next message of a queue, as the application's worker reads it."""
        intake = self.application.open_intake([queue], budget=1)
        (delivery,) = intake.fetch(1, 0)
        message = self.application.receive(delivery, intake)
        assert message is not None
        return message


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()

    @ActorDecorator(pair.application)(category="post", priority=Priority.HIGH, expires=timedelta(hours=1))
    def send_letter(to: str, weight: int = 20) -> None: ...

    yield pair
    pair.application.close()


def test_an_actor_that_is_not_imported_is_sent_to_by_name_and_category(pair: Pair) -> None:
    sent = pair.client.send(
        "send_letter", {"to": "x"}, category="post", priority=Priority.LOW, tags=["a"], job_id="l-1"
    )

    assert (sent.message_id, sent.queue_name) == ("l-1", "post.low")
    message = pair.received("post.low")
    assert (message.actor_name, message.kwargs, message.extras.tags) == ("send-letter", {"to": "x"}, ["a"])


def test_a_declared_actor_is_sent_to_by_its_own_rules(pair: Pair) -> None:
    client = Client(pair.application)

    message = client.send("send_letter", {"to": "x"})

    assert (message.queue_name, message.actor_name) == ("post.high", "send-letter")
    assert message.options["callboard"]["expires"] > datetime.now(UTC).timestamp() + 3000
    with pytest.raises(InvalidPayload, match="'to' is missing"):
        client.send("send-letter", {})
    with pytest.raises(UnknownActor, match="did you mean 'send-letter'"):
        client.send("send-lettr", {"to": "x"})


def test_a_stock_actor_is_sent_to_its_one_queue(pair: Pair) -> None:
    @dramatiq.actor(broker=pair.application, queue_name="default")
    def stock_one(n: int) -> None: ...

    assert Client(pair.application).send("stock_one", {"n": 1}).queue_name == "default"
    assert pair.received("default").kwargs == {"n": 1}


def test_the_category_has_to_be_said_where_no_actor_is_known(pair: Pair) -> None:
    with pytest.raises(ValueError, match="say which category 'send-letter' is in"):
        pair.client.send("send-letter", {"to": "x"})
    with pytest.raises(ValueError, match="can't be a category"):
        pair.client.send("send-letter", {"to": "x"}, category="No Such")


def test_the_rules_of_sending_hold_for_a_client_too(pair: Pair) -> None:
    with pytest.raises(PayloadTooLarge, match="put the data into storage"):
        pair.client.send("send-letter", {"to": "x" * 300_000}, category="post")
    with pytest.raises(InvalidPayload, match="are no JSON"):
        pair.client.send("send-letter", {"to": object()}, category="post")
    with pytest.raises(ValueError, match="no time zone"):
        pair.client.send("send-letter", {"to": "x"}, category="post", at=datetime(2030, 1, 1))
    first = pair.client.send("send-letter", {"to": "x"}, category="post", unique="k")
    second = pair.client.send("send-letter", {"to": "x"}, category="post", unique="k")
    assert first.message_id == second.message_id


def test_a_delayed_job_waits(pair: Pair) -> None:
    pair.client.send("send-letter", {"to": "x"}, category="post", delay=timedelta(hours=1))

    assert pair.driver.counts(["post.medium"])["post.medium"].delayed == 1


def test_a_client_of_its_own_signs_what_it_sends() -> None:
    with Client.open("stub:", namespace="", signing_keys="k1:0123456789abcdef") as client:
        client.send("send-letter", {"to": "x"}, category="post")
        (message,) = client.broker.driver.peek("post.medium")
        from callboard.envelope import decode_headers

        Signer.parse("k1:0123456789abcdef").verify(
            "post.medium", message.body, decode_headers(message.headers).signature
        )


def test_a_wrong_url_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="there is no such driver"):
        Client.open("amq://localhost")
