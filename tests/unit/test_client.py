"""Sending by name, importing no actor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from callboard import Priority, State
from callboard.actor import ActorDecorator, JobActor
from callboard.brokers.base import Broker
from callboard.brokers.driver import Driver, Outgoing, PutError
from callboard.brokers.file import FileDriver
from callboard.brokers.stub import StubDriver
from callboard.client import Client
from callboard.envelope import Signer, decode_headers
from callboard.errors import (
    InvalidPayload,
    NotQueued,
    PartlySent,
    PayloadTooLarge,
    SettingsError,
    UnknownActor,
)
from callboard.store import open_store
from callboard.worker.worker import Worker
from middleware.expiry import Expiry


class Pair:
    """A producer that knows no actor, and an application that does, on the same queues."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.store = open_store("memory:")
        self.application = Broker(self.driver, store=self.store, middleware=[Expiry()])
        self.client = Client(Broker(self.driver, store=self.store))

    def received(self, queue: str) -> Any:
        """The next message of a queue, as the application's worker reads it."""
        (message,) = self.all_received(queue)
        return message

    def all_received(self, queue: str) -> list[Any]:
        """The messages of a queue, as the application's worker reads them."""
        intake = self.application.open_intake([queue], budget=1000)
        messages = [self.application.receive(delivery, intake) for delivery in intake.fetch(1000, 0)]
        assert None not in messages
        return messages

    def run(self, *queues: str) -> None:
        """Have a worker run what waits in some queues."""
        worker = Worker(self.application, sorted(self.application.queues), threads=1)
        worker.start()
        try:
            for queue in queues:
                self.application.join(queue, timeout=30_000)
        finally:
            worker.stop(grace=30)


@pytest.fixture(params=["stub", "file"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(StubDriver() if request.param == "stub" else FileDriver(tmp_path / "var"))

    @ActorDecorator(pair.application)(category="post", priority=Priority.HIGH, expires=timedelta(hours=1))
    def send_letter(to: str, weight: int = 20) -> None: ...

    yield pair
    pair.application.close()


@pytest.fixture
def declared(pair: Pair) -> Any:
    """The application's actor, which the client knows nothing of."""
    actor = pair.application.actors["send-letter"]
    assert isinstance(actor, JobActor)
    return actor


Send = Callable[..., list[Any]]


def _one(client: Client, **options: Any) -> list[Any]:
    return [client.send("send-letter", {"to": "x"}, category="post", **options)]


def _one_async(client: Client, **options: Any) -> list[Any]:
    return [asyncio.run(client.send_async("send-letter", {"to": "x"}, category="post", **options))]


def _many(client: Client, **options: Any) -> list[Any]:
    return client.send_many("send-letter", [{"to": "x"}], category="post", **options)


def _many_async(client: Client, **options: Any) -> list[Any]:
    return asyncio.run(client.send_many_async("send-letter", [{"to": "x"}], category="post", **options))


every_way = pytest.mark.parametrize("send", [_one, _one_async, _many, _many_async])


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


# -- every way of sending, and every option ------------------------------------------------------------------


@every_way
def test_every_way_of_sending_by_name_is_sending_by_actor(pair: Pair, declared: Any, send: Send) -> None:
    options: dict[str, Any] = {
        "priority": Priority.LOW,
        "expires": datetime(2100, 1, 1, tzinfo=UTC),
        "tags": ["a", "b"],
        "job_id": "l-1",
        "unique_until": "started",
    }
    (by_name,) = send(pair.client, unique="by name", **options)
    by_actor = declared.using(unique="by actor", **options).send(to="x")

    first, second = pair.all_received("post.low")
    assert (
        (first.message_id, second.message_id) == (by_name.message_id, by_actor.message_id) == ("l-1", "l-1")
    )
    assert (first.actor_name, first.args, first.kwargs) == (second.actor_name, second.args, {"to": "x"})
    assert first.options["callboard"].pop("unique") == "send-letter:by name"
    assert second.options["callboard"].pop("unique") == "send-letter:by actor"
    assert first.options == second.options


@every_way
def test_the_sender_of_a_duplicate_learns_which_job_has_the_key(
    pair: Pair, declared: Any, send: Send
) -> None:
    held = declared.using(unique="k").send(to="x").message_id

    (duplicate,) = send(pair.client, unique="k")

    assert (duplicate.message_id, duplicate.options["callboard"]["duplicate_of"]) == (held, held)
    assert pair.driver.counts(["post.high", "post.medium"])["post.medium"].ready == 0


@every_way
def test_a_key_may_last_for_a_time_whatever_becomes_of_the_job(pair: Pair, declared: Any, send: Send) -> None:
    hour = timedelta(hours=1)
    (first,) = send(pair.client, unique="k", unique_for=hour)
    pair.run("post.medium")

    (second,) = send(pair.client, unique="k", unique_for=hour)

    assert second.options["callboard"]["duplicate_of"] == first.message_id
    assert declared.using(unique="k", unique_for=hour).send(to="x").message_id == first.message_id
    pair.store.release_key("unique-for:send-letter:k", first.message_id)  # its time is over
    assert "duplicate_of" not in send(pair.client, unique="k", unique_for=hour)[0].options["callboard"]


def test_a_key_may_last_until_the_job_starts(pair: Pair) -> None:
    sent: list[Any] = []

    @ActorDecorator(pair.application)(category="post")
    def write_letter() -> None:
        if len(sent) == 1:
            sent.append(write())

    def write() -> Any:
        return pair.client.send("write-letter", category="post", unique="k", unique_until="started")

    sent.append(write())
    assert write().message_id == sent[0].message_id
    pair.run("post.medium")
    first, second = sent
    assert second.message_id != first.message_id
    assert "duplicate_of" not in second.options["callboard"]


@every_way
def test_a_delay_holds_every_job_back(pair: Pair, send: Send) -> None:
    send(pair.client, delay=timedelta(hours=1))
    send(pair.client, at=datetime.now(UTC) + timedelta(hours=1))

    counts = pair.driver.counts(["post.medium"])["post.medium"]
    assert (counts.ready, counts.delayed) == (0, 2)


@every_way
def test_options_that_contradict_each_other_are_refused_and_nothing_is_queued(pair: Pair, send: Send) -> None:
    with pytest.raises(ValueError, match="there is none"):
        send(pair.client, unique_for=timedelta(hours=1))
    with pytest.raises(ValueError, match="not both"):
        send(pair.client, unique="k", unique_for=timedelta(hours=1), unique_until="started")
    with pytest.raises(ValueError, match="give one of delay and at"):
        send(pair.client, delay=timedelta(hours=1), at=datetime(2100, 1, 1, tzinfo=UTC))
    with pytest.raises(TypeError, match="prio"):
        send(pair.client, prio=Priority.LOW)
    assert pair.driver.counts(["post.medium"])["post.medium"].ready == 0


def test_what_was_sent_is_a_copy_of_the_payload(pair: Pair) -> None:
    payload = {"to": "x"}
    sent = pair.client.send("send-letter", payload, category="post")

    payload["to"] = "y"

    assert sent.kwargs == {"to": "x"}


def test_many_jobs_are_sent_at_once_and_in_their_order(pair: Pair) -> None:
    names = [f"street {n}" for n in range(600)]

    sent = pair.client.send_many(
        "send_letter", ({"to": name} for name in names), category="post", tags=["mailing"]
    )

    received = pair.all_received("post.medium")
    assert [message.kwargs["to"] for message in received] == names
    assert [message.message_id for message in received] == [message.message_id for message in sent]
    assert {tuple(message.extras.tags) for message in received} == {("mailing",)}


def test_of_many_jobs_with_one_key_the_first_is_queued(pair: Pair) -> None:
    sent = pair.client.send_many("send-letter", [{"to": "x"}, {"to": "y"}], category="post", unique="k")

    message = pair.received("post.medium")
    assert message.kwargs == {"to": "x"}
    assert [one.message_id for one in sent] == [message.message_id] * 2
    assert [one.options["callboard"].get("duplicate_of") for one in sent] == [None, message.message_id]


def test_one_wrong_job_among_many_keeps_all_from_being_queued(pair: Pair) -> None:
    with pytest.raises(InvalidPayload, match="are no JSON"):
        pair.client.send_many(
            "send-letter", [{"to": "x"}, {"to": object()}], category="post", unique_for=None
        )
    with pytest.raises(InvalidPayload, match="'to' is missing"):
        Client(pair.application).send_many("send-letter", [{"to": "x"}, {}])

    counts = pair.driver.counts(["post.medium", "post.high"])
    assert [counts[queue].ready for queue in ("post.medium", "post.high")] == [0, 0]


def test_many_jobs_under_one_id_are_refused(pair: Pair, declared: Any) -> None:
    two = [{"to": "x"}, {"to": "y"}]
    with pytest.raises(ValueError, match="names one job"):
        pair.client.send_many("send-letter", two, category="post", job_id="l-1")
    with pytest.raises(ValueError, match="names one job"):
        declared.using(job_id="l-1").send_many(two)

    counts = pair.driver.counts(["post.medium", "post.high"])
    assert [counts[queue].ready for queue in ("post.medium", "post.high")] == [0, 0]
    assert pair.client.send_many("send-letter", two[:1], category="post", job_id="l-1")[0].message_id == "l-1"


def test_what_became_of_many_jobs_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(messages: list[Outgoing], *, deadline: float) -> None:
        raise PutError("full", not_queued=messages[1:])

    monkeypatch.setattr(pair.driver, "put", put)
    with pytest.raises(PartlySent) as caught:
        pair.client.send_many("send-letter", [{"to": "x"}, {"to": "y"}], category="post")
    assert (len(caught.value.queued), len(caught.value.not_queued)) == (1, 1)


def test_many_jobs_go_to_declared_and_stock_actors_by_their_own_rules(pair: Pair) -> None:
    @dramatiq.actor(broker=pair.application, queue_name="default")
    def stock_one(n: int) -> None: ...

    client = Client(pair.application)

    stock = asyncio.run(client.send_many_async("stock-one", [{"n": 1}, {"n": 2}]))
    letters = client.send_many("send_letter", [{"to": "x"}])

    assert [message.queue_name for message in stock] == ["default"] * 2
    assert [message.kwargs["n"] for message in pair.all_received("default")] == [1, 2]
    assert letters[0].queue_name == "post.high"
    assert letters[0].options["callboard"]["expires"] > datetime.now(UTC).timestamp() + 3000
    with pytest.raises(UnknownActor, match="did you mean 'send-letter'"):
        client.send_many("send-lettr", [{"to": "x"}])


def test_a_later_version_of_a_payload_is_said(pair: Pair) -> None:
    (message,) = pair.client.send_many("send-letter", [{"to": "x"}], category="post", payload_version=2)

    assert message.options["callboard"]["payload_version"] == 2


def test_options_added_to_options_are_checked_together(declared: Any) -> None:
    later = declared.using(delay=timedelta(hours=1), tags="a")
    with pytest.raises(ValueError, match="give one of delay and at"):
        later.using(at=datetime(2100, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="no time zone"):
        later.using(expires=datetime(2100, 1, 1))
    message = later.using(delay=None, priority="low").send(to="x")
    assert (message.queue_name, message.options["callboard"]["tags"]) == ("post.low", ["a"])


# -- a client of its own -------------------------------------------------------------------------------------


def test_a_client_of_its_own_signs_what_it_sends() -> None:
    with Client.open("stub:", namespace="", signing_keys="k1:0123456789abcdef") as client:
        client.send("send-letter", {"to": "x"}, category="post")
        (message,) = client.broker.driver.peek("post.medium")
        Signer.parse("k1:0123456789abcdef").verify(
            "post.medium", message.body, decode_headers(message.headers).signature
        )


def test_a_wrong_url_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="there is no such driver"):
        Client.open("amq://localhost")


def test_a_unique_job_needs_a_client_with_a_store() -> None:
    with (
        Client.open("stub:") as client,
        pytest.raises(NotQueued, match="a unique job needs a store"),
    ):
        client.send("send-letter", {"to": "x"}, category="post", unique="k")


def test_a_client_with_a_store_records_what_it_sends_but_for_what_may_be_secret(tmp_path: Path) -> None:
    with Client.open(f"file:{tmp_path}", store_url=f"file:{tmp_path}") as client:
        one = client.send("send-letter", {"to": "x", "phrase": "geheim"}, category="post", tags=["a"])
        many = client.send_many(
            "send-letter", [{"to": "x"}, {"to": "y"}], category="post", delay=timedelta(hours=1)
        )
    store = open_store(f"file:{tmp_path}")  # closing the client has written all

    records = [store.get(message.message_id) for message in (one, *many)]
    assert [record and record.state for record in records] == [State.QUEUED, State.SCHEDULED, State.SCHEDULED]
    assert records[0] is not None
    assert (records[0].actor, records[0].queue, records[0].tags) == ("send-letter", "post.medium", ("a",))
    assert records[0].payload == ""  # what is secret in it is known where the actor is
    store.close()
