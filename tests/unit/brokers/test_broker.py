"""The rules of the broker: sending, receiving, settling, failing closed."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, Middleware
from pydantic import BaseModel, SecretStr

from callboard import Permanent, Priority, Snooze, State, current_job, dead_letter, envelope, queues
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.driver import Delivery, Intake, Outgoing, StoredMessage
from callboard.brokers.settling import MAX_HOOK_FAILURES
from callboard.brokers.stub import StubDriver
from callboard.envelope import Headers, Signer
from callboard.errors import DeclarationError, InvalidPayload, NotQueued, PayloadTooLarge, UnknownActor
from callboard.worker.worker import Worker
from tests.unit.brokers.conftest import Clock

Claim = Callable[[], list[Delivery]]
Working = Callable[..., Worker]


def _body(delivery: Delivery | StoredMessage) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(delivery.body)
    return decoded


def _raw(body: bytes | dict[str, Any], *, queue: str = "jobs.medium", headers: bytes = b"") -> Outgoing:
    return Outgoing(queue, body if isinstance(body, bytes) else json.dumps(body).encode(), "raw", headers)


def _plain(**fields: Any) -> dict[str, Any]:
    return {
        "queue_name": "jobs.medium",
        "actor_name": "note",
        "args": [],
        "kwargs": {"text": "hello"},
        "options": {},
        "message_id": "raw-1",
        "message_timestamp": 1,
    } | fields


@pytest.fixture
def note(actor: ActorDecorator) -> Any:
    """An actor that remembers what it was called with."""
    seen: list[str] = []

    @actor(category="jobs")
    def note(text: str) -> None:
        seen.append(text)

    note.seen = seen  # type: ignore[attr-defined]
    return note


def _dead(broker: Broker, category: str = "jobs") -> list[dead_letter.DeadLetter]:
    return [dead_letter.decode(m.body) for m in broker.driver.peek(queues.dead_queue(category))]


def _quarantined(broker: Broker) -> list[str]:
    return [envelope.decode_headers(m.headers).reason for m in broker.driver.peek(queues.QUARANTINE)]


# -- sending ---------------------------------------------------------------------------------------------


def test_a_sent_job_waits_in_the_queue_of_its_category_and_priority(note: Any, claim: Claim) -> None:
    message = note.using(priority=Priority.HIGH, tags=["a"]).send("hello")
    (delivery,) = claim()
    assert delivery.queue == "jobs.high"
    assert _body(delivery)["message_id"] == message.message_id
    assert _body(delivery)["kwargs"] == {"text": "hello"}
    assert _body(delivery)["args"] == []
    assert _body(delivery)["options"] == {"callboard": {"v": 1, "tags": ["a"]}}


@pytest.mark.parametrize("arguments", [{}, {"text": 3}, {"text": "a", "more": 1}])
def test_a_wrong_payload_raises_and_queues_nothing(
    note: Any, claim: Claim, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPayload, match="'note'"):
        note.send(**arguments)
    assert claim() == []


def test_one_wrong_payload_of_many_queues_none(note: Any, claim: Claim) -> None:
    with pytest.raises(InvalidPayload):
        note.send_many([{"text": "a"}, {"text": 3}])
    assert claim() == []


def test_an_oversized_payload_says_to_use_storage(note: Any, claim: Claim) -> None:
    with pytest.raises(PayloadTooLarge, match="put the data into storage and send its key") as caught:
        note.send("x" * 262_144)
    assert caught.value.job_id
    assert claim() == []


def test_what_is_no_json_is_refused(broker: Broker) -> None:
    @dramatiq.actor(broker=broker)
    def stock(value: Any) -> None: ...

    with pytest.raises(InvalidPayload, match="no JSON"):
        stock.send(object())


def test_a_send_that_fails_says_that_nothing_was_queued(note: Any, broker: Broker) -> None:
    assert isinstance(broker.driver, StubDriver)
    broker.driver.fail_puts = "the disk is full"
    with pytest.raises(NotQueued, match="not queued: the disk is full") as caught:
        note.send("a")
    assert envelope.is_job_id(caught.value.job_id)


def test_an_enqueue_hook_that_fails_raises_to_the_caller_and_queues_nothing(
    note: Any, broker: Broker, claim: Claim
) -> None:
    class Refuses(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            raise RuntimeError("not today")

    broker.add_middleware(Refuses())
    with pytest.raises(RuntimeError, match="not today"):
        note.send("a")
    assert claim() == []


def test_a_delay_waits_in_the_broker(note: Any, claim: Claim, clock: Clock) -> None:
    note.using(delay=timedelta(hours=1)).send("later")
    assert claim() == []
    clock.now += 3600
    assert len(claim()) == 1


def test_a_generator_may_fill_one_mapping_again_and_again(note: Any, broker: Broker) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {}
        for number in range(3):
            row["text"] = str(number)
            yield row

    messages = note.send_many(rows())
    assert [message.kwargs["text"] for message in messages] == ["0", "1", "2"]


def test_a_delay_over_300_days_is_refused(note: Any) -> None:
    with pytest.raises(ValueError, match="300 days"):
        note.using(delay=timedelta(days=301)).send("a")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay": 10}, r"delay=10 is not a timedelta; for seconds: delay=timedelta\(seconds=10\)"),
        ({"delay": "1h"}, "delay='1h' is not a timedelta$"),
        ({"at": "2030-01-01"}, "at='2030-01-01' is not a datetime$"),
        ({"expires": 60}, "expires=60 is not a timedelta or a datetime; for seconds"),
        ({"unique": "k", "unique_for": 60}, "unique_for=60 is not a timedelta"),
        ({"countdown": 3}, "there is no option 'countdown'; there are priority, delay, at"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_and_the_right_one_named(
    note: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        note.using(**options)


def test_options_that_make_no_sense_are_refused(note: Any) -> None:
    with pytest.raises(ValueError, match="one of delay and at"):
        note.using(delay=timedelta(1), at=datetime.now(UTC))
    with pytest.raises(ValueError, match="no time zone"):
        note.using(at=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="tag"):
        note.using(tags=[""])


def test_a_unique_job_is_queued_once_until_it_ends(note: Any, broker: Broker, working: Working) -> None:
    first = note.using(unique="k").send("one")
    second = note.using(unique="k").send("two")
    assert second.message_id == first.message_id
    assert broker.driver.counts(["jobs.medium"])["jobs.medium"].ready == 1
    worker = working()
    broker.join("jobs.medium", timeout=30_000)
    worker.stop(grace=30)  # the key is given back a moment after the acknowledgement
    third = note.using(unique="k").send("three")
    assert third.message_id != first.message_id


def test_a_job_may_be_unique_until_it_starts(
    note: Any, actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    sent: list[str] = []

    @actor(category="jobs")
    def again() -> None:
        if not sent:
            sent.append(again.using(unique="k", unique_until="started").send().message_id)

    first = again.using(unique="k", unique_until="started").send().message_id
    assert again.using(unique="k", unique_until="started").send().message_id == first
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert sent != [first]


def test_a_job_may_be_unique_for_a_time_though_it_has_ended(
    note: Any, broker: Broker, working: Working
) -> None:
    hour = timedelta(hours=1)
    first = note.using(unique="k", unique_for=hour).send("one").message_id
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert note.using(unique="k", unique_for=hour).send("two").message_id == first
    assert broker.store is not None
    assert broker.store.key_owner("unique-for:note:k") == first
    broker.store.release_key("unique-for:note:k", first)  # its time is over
    assert note.using(unique="k", unique_for=hour).send("three").message_id != first


def test_a_key_that_lasts_for_no_time_or_belongs_to_none_is_refused(note: Any) -> None:
    with pytest.raises(ValueError, match="there is none"):
        note.using(unique_for=timedelta(hours=1))
    with pytest.raises(ValueError, match="not both"):
        note.using(unique="k", unique_for=timedelta(hours=1), unique_until="started")
    with pytest.raises(ValueError, match="can't last"):
        note.using(unique="k", unique_for=timedelta(0))
    with pytest.raises(ValueError, match="'started' or 'ended'"):
        note.using(unique="k", unique_until="succeeded")


def test_a_unique_job_that_could_not_be_queued_leaves_its_key_free(note: Any, broker: Broker) -> None:
    assert isinstance(broker.driver, StubDriver)
    broker.driver.fail_puts = "away"
    with pytest.raises(NotQueued):
        note.using(unique="k", job_id="one").send("a")
    broker.driver.fail_puts = None
    assert note.using(unique="k", job_id="two").send("a").message_id == "two"


def test_of_many_the_middleware_is_told_of_those_that_were_queued(
    note: Any, broker: Broker, claim: Claim
) -> None:
    told: list[tuple[str, list[str]]] = []

    class OneByOne(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            told.append(("one by one", [message.message_id]))

    class Together(OneByOne):
        def after_enqueue_many(self, broker: Any, messages: Any, delay: Any) -> None:
            told.append(("together", [message.message_id for message in messages]))
            raise RuntimeError("it is too late for that")

    broker.add_middleware(OneByOne())
    broker.add_middleware(Together())
    held = note.using(unique="k").send("first")
    del told[:]
    sent = note.using(tags=["t"]).send_many([{"text": "a"}, {"text": "b"}])
    ids = [message.message_id for message in sent]
    assert told == [("together", ids), ("one by one", [ids[0]]), ("one by one", [ids[1]])]
    assert ids == sorted(ids)
    del told[:]
    duplicates = note.using(unique="k").send_many([{"text": "c"}, {"text": "d"}])
    assert {message.message_id for message in duplicates} == {held.message_id}
    assert told == []
    assert [_body(d)["message_id"] for d in claim()] == [held.message_id, *ids]


def test_jobs_sent_together_are_recorded_each(note: Any, broker: Broker) -> None:
    sent = note.using(tags=["t"], expires=timedelta(hours=1)).send_many(
        [{"text": f"{n}"} for n in range(300)]
    )
    assert broker.recorder is not None
    assert broker.store is not None
    assert broker.recorder.flush(30)
    for number in (0, 299):
        record = broker.store.get(sent[number].message_id)
        assert record is not None
        assert (record.state, record.tags, record.payload) == (State.QUEUED, ("t",), f'{{"text":"{number}"}}')
        assert record.expires_at == broker.clock() + 3600
    sent[0].options["callboard"]["tags"].append("mine")
    assert sent[1].options["callboard"]["tags"] == ["t"]


def test_many_payloads_may_be_of_any_kind_of_mapping_and_come_from_anywhere(
    note: Any, broker: Broker, claim: Claim
) -> None:
    given = ({"text": f"{n}"} if n % 2 else MappingProxyType({"text": f"{n}"}) for n in range(600))
    sent = note.send_many(given)
    assert [message.kwargs["text"] for message in sent] == [f"{n}" for n in range(600)]
    assert [_body(d)["kwargs"]["text"] for d in claim()] == [f"{n}" for n in range(600)]
    assert note.send_many([]) == []


async def _send_both(note: Any) -> tuple[Message[Any], list[Message[Any]]]:
    return await note.send_async("a"), await note.using(tags=["t"]).send_many_async([{"text": "b"}])


def test_async_sends_queue_too(note: Any, claim: Claim) -> None:
    one, many = asyncio.run(_send_both(note))
    assert [_body(d)["message_id"] for d in claim()] == [one.message_id, many[0].message_id]


# -- declaring -------------------------------------------------------------------------------------------


def test_an_actor_is_found_under_both_spellings_and_a_wrong_name_suggests_the_nearest(
    actor: ActorDecorator, broker: Broker
) -> None:
    @actor(category="email")
    def send_email() -> None: ...

    assert broker.find_actor("send-email") is send_email
    assert broker.find_actor("send_email") is send_email
    with pytest.raises(UnknownActor, match="did you mean 'send-email'"):
        broker.find_actor("send-mail")


def test_an_actor_has_the_four_queues_of_its_category(note: Any, broker: Broker) -> None:
    assert {"jobs.critical", "jobs.high", "jobs.medium", "jobs.low"} <= set(broker.queues)
    assert broker.delay_queues == set()


def test_bad_declarations_are_refused(actor: ActorDecorator) -> None:
    with pytest.raises(DeclarationError, match="takes a pydantic model"):
        actor("name")  # type: ignore[call-overload]
    with pytest.raises(DeclarationError, match="unknown options: colour"):
        actor(category="jobs", colour="red")(_nothing)
    with pytest.raises(DeclarationError, match="category"):
        actor(category="No Good")(_nothing)
    for options, text in (
        ({"priority": "urgent"}, "there are Priority.CRITICAL"),
        ({"time_limit": 5}, "timedelta"),
        ({"time_limit": "5"}, "timedelta"),
        ({"retries": -1}, "number from 0"),
        ({"periodic": "* * * * *"}, "must be a schedule"),
    ):
        with pytest.raises(DeclarationError, match=text):
            actor(category="jobs", **options)(_nothing)


def test_a_bare_decorator_declares_an_actor_of_its_modules_category(actor: ActorDecorator) -> None:
    @actor
    def bare(text: str) -> str:
        return text

    assert bare.actor_name == "bare"
    assert bare.category == "test_broker"


def test_a_priority_may_be_given_by_its_name(note: Any, claim: Claim) -> None:
    note.using(priority="high").send("a")
    assert claim()[0].queue == "jobs.high"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_not_are_refused_at_the_send(
    actor: ActorDecorator, broker: Broker, number: float
) -> None:
    @actor(category="jobs")
    def typed(x: float) -> None: ...

    @actor(category="jobs")
    def untyped(x: Any) -> None: ...

    @dramatiq.actor(broker=broker)
    def stock(x: Any) -> None: ...

    for send in (typed.send, untyped.send, stock.send):
        with pytest.raises(InvalidPayload):
            send(number)
        with pytest.raises(InvalidPayload):
            send({"deep": [None, number]})  # type: ignore[arg-type]
    untyped.send(None)


def test_a_cancelled_job_leaves_its_key_to_the_next(note: Any, broker: Broker, claim: Claim) -> None:
    first = note.using(unique="k", delay=timedelta(hours=1)).send("one")
    assert broker.store is not None
    assert broker.recorder is not None
    assert broker.recorder.flush(30)
    duplicate = note.using(unique="k").send("two")
    assert duplicate.options["callboard"]["duplicate_of"] == first.message_id
    broker.store.cancel(first.message_id, at=time.time())
    third = note.using(unique="k").send("three")
    assert third.message_id not in (first.message_id, "")
    assert [_body(d)["kwargs"] for d in claim()] == [{"text": "three"}]


def test_a_producer_that_dies_in_the_midst_of_a_send_holds_its_key_for_seconds_only(
    note: Any, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    assert broker.store is not None
    claim_key = broker.store.claim_key

    def note_ttl(key: str, owner: str, *, ttl: float, durable: bool = True) -> str:
        taken.append(ttl)
        return claim_key(key, owner, ttl=ttl, durable=durable)

    monkeypatch.setattr(broker.store, "claim_key", note_ttl)
    note.using(unique="k").send("a")
    assert taken == [15.0, 86_400.0]


class _Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@pytest.mark.parametrize(
    "error", [RuntimeError("can't read \udcff.txt"), _Rude(), RuntimeError("x" * 5_000_000)]
)
def test_whatever_an_exception_says_its_job_is_tried_again_and_then_dead(
    error: Exception, actor: ActorDecorator, broker: Broker, working: Working, clock: Clock
) -> None:
    runs: list[int] = []

    @actor(category="jobs", retries=1)
    def fails() -> None:
        runs.append(current_job().attempt)
        raise error

    fails.send()
    working()
    clock.now = _wait_for(broker.driver.next_due)  # type: ignore[attr-defined]
    broker.driver.wake()  # type: ignore[attr-defined]
    (letter,) = _wait_for(lambda: _dead(broker))
    assert runs == [1, 2]
    assert len(letter.attempts) == 2
    assert len(broker.driver.peek(queues.dead_queue("jobs"))[0].body) < 200_000


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {"eta": 10**18}},
        {"options": {"eta": 1e300}},
        {"options": {"max_retries": -5}},
        {"options": {"min_backoff": 1e300}},
        {"options": {"throws": "x"}},
        {"options": {"callboard": {"expires": -1e300}}},
        {"message_timestamp": 10**18},
    ],
)
def test_numbers_out_of_any_range_end_in_quarantine(
    fields: dict[str, Any], note: Any, broker: Broker, intake: Intake, claim: Claim
) -> None:
    broker.driver.put([_raw(_plain(**fields))], deadline=1)
    assert broker.receive(claim()[0], intake) is None
    assert len(_quarantined(broker)) == 1


def test_headers_out_of_any_range_end_in_quarantine(
    note: Any, broker: Broker, intake: Intake, claim: Claim
) -> None:
    broker.driver.put([_raw(_plain(), headers=b'{"parked_since": -1e300}')], deadline=1)
    assert broker.receive(claim()[0], intake) is None
    assert len(_quarantined(broker)) == 1


def test_a_foreign_eta_beyond_300_days_waits_in_more_than_one_go(
    note: Any, broker: Broker, intake: Intake, claim: Claim, clock: Clock
) -> None:
    eta = (clock.now + 400 * 86_400) * 1000
    broker.driver.put([_raw(_plain(options={"eta": eta}))], deadline=1)
    assert broker.receive(claim()[0], intake) is None
    clock.now += 300 * 86_400
    assert broker.receive(claim()[0], intake) is None
    clock.now += 100 * 86_400
    assert broker.receive(claim()[0], intake) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_hook_may_raise_anything(
    error: type[BaseException], note: Any, broker: Broker, working: Working
) -> None:
    class Rude(Middleware):
        def before_ack(self, broker: Any, message: Any) -> None:
            raise error

        def after_ack(self, broker: Any, message: Any) -> None:
            raise error

    broker.add_middleware(Rude())
    working(threads=1)
    note.send("one")
    note.send("two")
    broker.join("jobs.medium", timeout=30_000)
    assert note.seen == ["one", "two"]


def _nothing() -> None: ...


# -- receiving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\x80\x04\x95",
        b"[]",
        b"null",
        b'{"kwargs":' * 30_000,
        json.dumps(_plain(options=None)).encode(),
        json.dumps(_plain(kwargs=[])).encode(),
        json.dumps(_plain(options={"on_success": 5})).encode(),
        json.dumps(_plain(options={"pipe_target": {"a": 1}})).encode(),
        json.dumps(_plain(options={"callboard": {"tags": 3}})).encode(),
        json.dumps(_plain(message_id="../x")).encode(),
    ],
)
def test_what_cannot_be_read_ends_in_quarantine_and_the_next_job_runs(
    body: bytes, note: Any, broker: Broker, working: Working
) -> None:
    broker.driver.put([_raw(body)], deadline=1)
    note.send("next")
    working(threads=1)
    broker.join("jobs.medium", timeout=30_000)
    assert note.seen == ["next"]
    (reason,) = _quarantined(broker)
    assert reason.startswith("from jobs.medium: ")
    assert broker.driver.peek(queues.QUARANTINE)[0].body == body


def test_broken_headers_end_in_quarantine(note: Any, broker: Broker, working: Working) -> None:
    broker.driver.put([_raw(_plain(), headers=b'{"attempt": "x"}')], deadline=1)
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert note.seen == []
    assert "headers" in _quarantined(broker)[0]


def test_the_queue_is_the_one_it_came_from_whatever_the_body_says(
    note: Any, broker: Broker, intake: Intake, claim: Claim
) -> None:
    broker.driver.put([_raw(_plain(queue_name="elsewhere.low"))], deadline=1)
    (delivery,) = claim()
    message = broker.receive(delivery, intake)
    assert message is not None
    assert message.queue_name == "jobs.medium"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"actor_name": "from-the-future"}, "from-the-future"),
        ({"options": {"from_the_future": 1}}, "from_the_future"),
        ({"options": {"callboard": {"v": 9}}}, "version 9"),
        ({"options": {"callboard": {"v": 1, "payload_version": 7}}}, "version 7"),
    ],
)
def test_what_this_worker_does_not_know_is_parked_then_dead(
    fields: dict[str, Any], reason: str, note: Any, broker: Broker, intake: Intake, claim: Claim, clock: Clock
) -> None:
    broker.driver.put([_raw(_plain(**fields))], deadline=1)
    waits = []
    for _ in range(100):
        found = claim()
        if found:
            assert broker.receive(found[0], intake) is None
            due = broker.driver.next_due()  # type: ignore[attr-defined]
            if due is None:
                break
            waits.append(due - clock.now)
            clock.now = due
    assert waits[:5] == [5, 5, 10, 20, 40]
    assert max(waits) == 60
    assert 3600 <= sum(waits) <= 3660
    (letter,) = _dead(broker)
    assert letter.reason.startswith("parked for 1:0")
    assert reason in letter.reason
    assert json.loads(letter.original) == _plain(**fields)


def test_a_parked_job_runs_when_a_worker_knows_it(
    actor: ActorDecorator, note: Any, broker: Broker, intake: Intake, claim: Claim, clock: Clock
) -> None:
    broker.driver.put([_raw(_plain(actor_name="newer"))], deadline=1)
    (delivery,) = claim()
    assert broker.receive(delivery, intake) is None

    @actor(category="jobs")
    def newer(text: str) -> None: ...

    clock.now += 5
    (delivery,) = claim()
    message = broker.receive(delivery, intake)
    assert message is not None
    assert message.headers.attempt == 0


def test_with_keys_an_unsigned_or_changed_message_is_quarantined_and_not_run(
    note: Any, broker: Broker, working: Working
) -> None:
    broker._signer = Signer.parse("k:0123456789abcdef")
    note.send("signed")
    body = json.dumps(_plain()).encode()
    good = envelope.encode_headers(Headers(signature=broker._signer.sign("jobs.medium", body)))
    other = envelope.encode_headers(Headers(signature=broker._signer.sign("jobs.low", body)))
    broker.driver.put(
        [_raw(body), _raw(body.replace(b"hello", b"hellO"), headers=good), _raw(body, headers=other)],
        deadline=1,
    )
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert note.seen == ["signed"]
    assert len(_quarantined(broker)) == 3


def test_a_foreign_eta_waits_in_the_broker(
    note: Any, broker: Broker, intake: Intake, claim: Claim, clock: Clock
) -> None:
    eta = (clock.now + 60) * 1000
    broker.driver.put([_raw(_plain(options={"eta": eta}))], deadline=1)
    (delivery,) = claim()
    assert broker.receive(delivery, intake) is None
    assert claim() == []
    clock.now += 60
    (delivery,) = claim()
    message = broker.receive(delivery, intake)
    assert message is not None
    assert "eta" not in message.options


# -- running and settling --------------------------------------------------------------------------------


def test_a_job_that_fails_waits_in_the_broker_and_keeps_its_original_bytes(
    actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    ran = threading.Event()

    @actor(category="jobs")
    def fails(items: list[int]) -> None:
        items.append(99)
        ran.set()
        raise RuntimeError("no luck")

    fails.send([1])
    body = broker.driver.peek("jobs.medium")[0].body
    working()
    assert ran.wait(30)
    waiting = _wait_for(lambda: list(broker.driver._queue("jobs.medium").delayed))  # type: ignore[attr-defined]
    headers = envelope.decode_headers(waiting[0].headers)
    assert waiting[0].body == body
    assert headers.attempt == 1
    assert headers.state == "retrying"
    assert headers.errors[0].message == "no luck"


def _wait_for(found: Callable[[], Any]) -> Any:
    end = threading.Event()
    for _ in range(3000):
        if result := found():
            return result
        end.wait(0.01)
    raise AssertionError("it didn't happen within 30 s")


def test_a_job_that_fails_for_good_leaves_its_whole_story(
    actor: ActorDecorator, broker: Broker, working: Working, clock: Clock
) -> None:
    @actor(category="jobs", retries=2)
    def fails() -> None:
        raise RuntimeError(f"attempt {current_job().attempt}")

    sent = fails.send()
    working()
    for _ in range(2):
        due = _wait_for(broker.driver.next_due)  # type: ignore[attr-defined]
        clock.now = due
        broker.driver.wake()  # type: ignore[attr-defined]
    (letter,) = _wait_for(lambda: _dead(broker))
    assert letter.job_id == sent.message_id
    assert [a.message for a in letter.attempts] == ["attempt 1", "attempt 2", "attempt 3"]
    assert letter.reason == "failed 3 times: RuntimeError: attempt 3"
    assert "raise RuntimeError" in letter.traceback
    assert json.loads(letter.original)["message_id"] == sent.message_id
    assert broker.recorder is not None
    assert broker.recorder.flush(30)
    record = broker.store.get(sent.message_id)  # type: ignore[union-attr]
    assert record is not None
    assert record.state is State.DEAD
    assert record.attempt == 3
    assert len(record.events) >= 3


def test_permanent_stops_at_once_and_snooze_uses_no_attempt(
    actor: ActorDecorator, broker: Broker, working: Working, clock: Clock
) -> None:
    attempts: list[int] = []

    @actor(category="jobs", retries=0)
    def sleepy() -> None:
        attempts.append(current_job().attempt)
        if len(attempts) < 4:
            raise Snooze(timedelta(minutes=1), "not yet")
        raise Permanent("no invoice 42")

    sleepy.send()
    working()
    for n in range(3):
        clock.now = _wait_for(broker.driver.next_due)  # type: ignore[attr-defined]
        broker.driver.wake()  # type: ignore[attr-defined]
        _wait_for(functools.partial(lambda n: len(attempts) > n + 1, n))
    (letter,) = _wait_for(lambda: _dead(broker))
    assert attempts == [1, 1, 1, 1]
    assert letter.reason == "permanent: no invoice 42"


def test_a_move_that_fails_keeps_the_claim_until_it_succeeds(
    actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    @actor(category="jobs", retries=0)
    def fails() -> None:
        broker.driver.fail_puts = "the broker is away"  # type: ignore[attr-defined]
        raise RuntimeError

    fails.send()
    working()
    _wait_for(lambda: broker.driver.fail_puts)  # type: ignore[attr-defined]
    assert broker.driver.counts(["jobs.medium"])["jobs.medium"].claimed == 1
    assert _dead(broker) == []
    broker.driver.fail_puts = None  # type: ignore[attr-defined]
    assert len(_wait_for(lambda: _dead(broker))) == 1
    broker.join("jobs.medium", timeout=30_000)


class _Fails(Middleware):
    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = 0

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._act("before")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        self._act("after")

    def _act(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            raise RuntimeError(f"broken {where} hook")


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("stock_worker", [False, True])
def test_a_hook_that_fails_uses_no_attempt_loses_nothing_and_makes_no_hot_loop(
    where: str, stock_worker: bool, note: Any, broker: Broker, working: Working, clock: Clock
) -> None:
    hook = _Fails(where)
    broker.add_middleware(hook)
    note.send("guarded")
    if stock_worker:
        worker: Any = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
        worker.start()
    else:
        worker = working(threads=2)
    waits = []
    for _ in range(MAX_HOOK_FAILURES - 1):
        due = _wait_for(broker.driver.next_due)  # type: ignore[attr-defined]
        waits.append(due - clock.now)
        clock.now = due
        broker.driver.wake()  # type: ignore[attr-defined]
    (letter,) = _wait_for(lambda: _dead(broker))
    if stock_worker:
        assert all(thread.is_alive() for thread in worker.workers)
        worker.stop()
    assert waits[:4] == [1, 2, 4, 8]
    assert hook.calls == MAX_HOOK_FAILURES
    assert len(note.seen) == (0 if where == "before" else MAX_HOOK_FAILURES)
    assert letter.reason.startswith(f"middleware: _Fails.{where}_process_message: RuntimeError: broken")
    assert letter.headers.attempt == 0


def test_a_stock_actor_runs_unchanged(broker: Broker, working: Working) -> None:
    ran: list[tuple[Any, ...]] = []

    @dramatiq.actor(broker=broker, max_retries=3, priority=5)
    def stock(a: int, *, b: str) -> None:
        ran.append((a, b))

    stock.send(1, b="x")
    working()
    broker.join("default", timeout=30_000)
    assert ran == [(1, "x")]


def test_an_async_actor_runs_and_sees_its_job(
    actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    seen: list[str] = []

    @actor(category="jobs")
    async def slow(text: str) -> None:
        seen.append(f"{text} {current_job().id}")

    sent = slow.send("a")
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert seen == [f"a {sent.message_id}"]


def test_a_mapping_that_a_job_returns_becomes_part_of_the_next_payload(
    actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    seen: list[tuple[int, str]] = []

    @actor(category="jobs")
    def first(n: int) -> dict[str, int]:
        return {"total": n * 2}

    @actor(category="jobs")
    def second(total: int, to: str) -> None:
        seen.append((total, to))

    pipeline: Any = first.message(21) | second.partial(to="ada")  # dramatiq's has no annotations
    pipeline.run()
    working()
    _wait_for(lambda: seen)
    assert seen == [(42, "ada")]


def test_callbacks_and_groups_work(actor: ActorDecorator, broker: Broker, working: Working) -> None:
    done = threading.Event()
    told: list[Any] = []

    @actor(category="jobs")
    def all_done() -> None:
        done.set()

    @actor(category="jobs")
    def tell(message_data: dict[str, Any], result: Any) -> None:
        told.append((message_data["actor_name"], result))

    @actor(category="jobs", on_success=tell)
    def part(n: int) -> int:
        return n

    make_group: Any = dramatiq.group  # it has no annotations
    group = make_group([part.message(n) for n in range(5)], broker=broker)
    group.add_completion_callback(all_done.message())
    group.run()
    working()
    assert done.wait(30)
    _wait_for(lambda: len(told) == 5)
    assert sorted(told) == [("part", n) for n in range(5)]


def test_results_are_kept_where_asked(actor: ActorDecorator, broker: Broker, working: Working) -> None:
    @actor(category="jobs", store_results=True)
    def add(a: int, b: int) -> int:
        return a + b

    sent = add.send(1, 2)
    working()
    assert sent.get_result(backend=broker.get_results_backend(), block=True, timeout=30_000) == 3


def test_an_expired_and_a_cancelled_job_never_start(note: Any, broker: Broker, working: Working) -> None:
    old = note.using(expires=datetime.now(UTC) - timedelta(seconds=1)).send("old")
    stopped = note.send("stopped")
    assert broker.store is not None
    broker.store.cancel(stopped.message_id, at=broker.clock())
    worker = working()
    broker.join("jobs.medium", timeout=30_000)
    worker.stop()  # what is recorded after the acks is recorded now
    assert note.seen == []
    assert broker.recorder is not None
    assert broker.recorder.flush(30)
    states = {job_id: broker.store.get(job_id).state for job_id in (old.message_id, stopped.message_id)}  # type: ignore[union-attr]
    assert states == {old.message_id: State.EXPIRED, stopped.message_id: State.CANCELLED}


class Login(BaseModel):
    user: str
    phrase: SecretStr


def test_secrets_reach_the_job_and_stand_in_no_record(
    actor: ActorDecorator, broker: Broker, working: Working
) -> None:
    seen: list[str] = []

    @actor(Login, category="jobs")
    def log_in(login: Login) -> None:
        seen.append(login.phrase.get_secret_value())

    sent = log_in.send(user="ada", phrase=SecretStr("s3cret"))
    working()
    broker.join("jobs.medium", timeout=30_000)
    assert seen == ["s3cret"]
    assert broker.recorder is not None
    assert broker.recorder.flush(30)
    record = broker.store.get(sent.message_id)  # type: ignore[union-attr]
    assert record is not None
    assert "s3cret" not in repr(record)
    assert "ada" in record.payload


def test_a_time_limit_ends_a_run(actor: ActorDecorator, broker: Broker, working: Working) -> None:
    @actor(category="jobs", time_limit=timedelta(seconds=0.3), retries=0)
    def endless() -> None:
        while True:
            pass

    endless.send()
    working()
    (letter,) = _wait_for(lambda: _dead(broker))
    assert "TimeLimitExceeded" in letter.reason


def test_jobs_run_by_their_own_priority_under_dramatiqs_worker(actor: ActorDecorator, broker: Broker) -> None:
    order: list[int] = []
    gate = threading.Event()

    @actor(category="jobs")
    def wait() -> None:
        gate.wait(30)

    @actor(category="jobs")
    def note_priority(priority: int) -> None:
        order.append(priority)

    wait.using(priority=Priority.CRITICAL).send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        _wait_for(lambda: broker.driver.counts(["jobs.critical"])["jobs.critical"].claimed)
        for priority in (Priority.LOW, Priority.MEDIUM, Priority.HIGH):
            note_priority.using(priority=priority).send(int(priority))
        _wait_for(lambda: worker.work_queue.qsize() == 3)
        gate.set()
        _wait_for(lambda: len(order) == 3)
        assert order == [2, 3, 4]
    finally:
        gate.set()
        worker.stop()


def test_dramatiqs_worker_gives_unstarted_jobs_back_when_it_stops(
    actor: ActorDecorator, broker: Broker
) -> None:
    gate, started = threading.Event(), threading.Event()

    @actor(category="jobs")
    def wait() -> None:
        started.set()
        gate.wait(30)

    for _ in range(3):
        wait.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        assert started.wait(30)
        _wait_for(lambda: worker.work_queue.qsize())
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        _wait_for(lambda: broker.driver.counts(["jobs.medium"])["jobs.medium"].ready == 2)
    finally:
        gate.set()
        stopping.join(30)
    assert broker.driver.counts(["jobs.medium"])["jobs.medium"].ready == 2
