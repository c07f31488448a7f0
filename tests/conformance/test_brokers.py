"""What every broker does, whatever driver keeps its messages and whichever worker runs its jobs.

Each test runs on every driver, under Callboard's worker and under Dramatiq's. A driver joins by one line in
drivers.py.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import dramatiq
import pytest
from dramatiq import Middleware
from dramatiq.middleware import SkipMessage
from pydantic import BaseModel, SecretStr

from callboard import Permanent, Priority, RetryPolicy, Snooze, State, current_job, envelope
from callboard.brokers import receiving, settling
from callboard.brokers.base import Broker
from callboard.brokers.driver import Intake
from callboard.client import Client
from callboard.envelope import Headers, Signer
from callboard.errors import StoreUnavailable
from callboard.operations import Letters, Operations
from callboard.queues import dead_queue
from callboard.servers import PrivateRabbitmq
from callboard.store.base import Store
from callboard.store.control import ControlWatch
from callboard.worker import shutdown
from tests.conformance.rig import LULL, PATIENCE, Rig
from tests.deliveries import take
from tests.patience import until

pytestmark = pytest.mark.usefixtures("plain_tracebacks")


@pytest.fixture
def note(rig: Rig) -> Any:
    return declare_note(rig)


def declare_note(rig: Rig) -> Any:
    """An actor that remembers what it was called with."""
    seen: list[str] = []

    @rig.actor()
    def note(text: str) -> None:
        seen.append(text)

    note.seen = seen
    return note


class Gate:
    """Holds jobs up."""

    def __init__(self, rig: Rig, **options: Any) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self.passed: list[str] = []
        self._lock = threading.Lock()
        self.actor = rig.actor(name="gate", **options)(self._pass)

    def _pass(self) -> None:
        with self._lock:
            self.inside += 1
        try:
            self.opened.wait(PATIENCE)
        finally:
            with self._lock:
                self.inside -= 1
        self.passed.append(current_job().id)


@pytest.fixture
def gate(rig: Rig) -> Iterator[Gate]:
    gate = Gate(rig)
    yield gate
    gate.opened.set()  # whatever went wrong, the worker can stop


def assert_nothing_comes(intake: Intake) -> None:
    end = time.monotonic() + LULL
    while (left := end - time.monotonic()) > 0:
        assert [delivery.body for delivery in intake.fetch(100, left)] == []


def all_within_reach(rig: Rig, crew: Any, wanted: int) -> None:
    """Wait until a busy worker has so many jobs at hand, if it fetches any that it can't start yet. Dramatiq's
    does; Callboard's doesn't, but RabbitMQ sends some ahead, and takes them back when nobody fetches them."""
    if rig.worker_name == "dramatiq":
        until(lambda: crew.within_reach() == wanted)
    elif rig.driver_name == "rabbitmq":
        until(lambda: crew.within_reach() > 0)


# --- running


def test_a_job_runs_once_and_is_gone(rig: Rig) -> None:
    ran: list[tuple[str, int, str]] = []

    @rig.actor()
    def note(text: str) -> None:
        ran.append((text, current_job().attempt, current_job().id))

    rig.start()
    sent = note.using(tags=["a"]).send("hello")
    record = rig.reaches(sent, State.SUCCEEDED)
    rig.finish()
    assert ran == [("hello", 1, sent.message_id)]
    assert (record.attempt, record.tags, record.queue) == (1, ("a",), rig.queue())


def test_many_jobs_of_all_priorities_each_run_once(rig: Rig, note: Any) -> None:
    wanted = [f"{priority.word} {n}" for priority in Priority for n in range(50)]
    for priority in Priority:
        note.using(priority=priority).send_many([{"text": f"{priority.word} {n}"} for n in range(50)])
    rig.start(threads=4)
    until(lambda: len(note.seen) >= len(wanted))
    rig.finish()
    assert sorted(note.seen) == sorted(wanted)


class Order(BaseModel):
    number: int
    placed: datetime
    total: Decimal
    wait: timedelta
    lines: dict[str, list[int]]
    phrase: SecretStr


def test_a_typed_payload_arrives_as_it_was_sent(rig: Rig) -> None:
    seen: list[Order] = []

    @rig.actor(Order)
    def take_order(order: Order) -> None:
        seen.append(order)

    order = Order(
        number=2**70,
        placed=datetime(2026, 3, 29, 2, 30, tzinfo=UTC),
        total=Decimal("0.10"),
        wait=timedelta(days=1, microseconds=1),
        lines={"é\u2028": [1, 2]},
        phrase=SecretStr("s3cret"),
    )
    sent = take_order.send(order)
    rig.start()
    record = rig.reaches(sent, State.SUCCEEDED)
    assert seen == [order]
    assert "s3cret" not in repr(record)


def test_an_async_actor_runs_and_sees_its_job(rig: Rig) -> None:
    seen: list[str] = []

    @rig.actor()
    async def slow(text: str) -> None:
        await asyncio.sleep(0.01)
        seen.append(f"{text} {current_job().id}")

    sent = [slow.send(text) for text in ("a", "b")]
    rig.start()
    for text, message in zip("ab", sent, strict=True):
        rig.reaches(message, State.SUCCEEDED)
        assert f"{text} {message.message_id}" in seen


def test_a_stock_actor_runs_unchanged(rig: Rig) -> None:
    ran: list[tuple[Any, ...]] = []
    told: list[Any] = []
    queue = f"{rig.category}-stock"

    @dramatiq.actor(
        broker=rig.broker, queue_name=queue, priority=5, max_retries=1, min_backoff=50, max_backoff=50
    )
    def fails(a: int, *, b: str) -> None:
        ran.append((a, b))
        raise ValueError(b)

    @dramatiq.actor(broker=rig.broker, queue_name=queue)
    def told_of(data: dict[str, Any], more: Any) -> None:
        told.append((data["message_id"], more))

    @dramatiq.actor(broker=rig.broker, queue_name=queue, on_success="told_of")
    def doubles(n: int) -> int:
        return 2 * n

    failing = fails.send(1, b="x")
    once = fails.send_with_options(args=(2,), kwargs={"b": "y"}, max_retries=0, on_failure=told_of)
    doubling = doubles.send(21)
    rig.start()
    assert rig.reaches(failing, State.DEAD).attempt == 2
    assert rig.reaches(once, State.DEAD).attempt == 1
    rig.reaches(doubling, State.SUCCEEDED)
    until(lambda: len(told) == 2)
    assert sorted(ran) == [(1, "x"), (1, "x"), (2, "y")]
    assert (doubling.message_id, 42) in told
    assert once.message_id in [job_id for job_id, _ in told]


def test_a_stock_actor_with_a_delay_waits_for_it(rig: Rig) -> None:
    @dramatiq.actor(broker=rig.broker, queue_name=f"{rig.category}-stock")
    def stock() -> None: ...

    rig.start()
    earliest = time.time() + 0.2
    sent = stock.send_with_options(delay=200)
    rig.reaches(sent, State.SUCCEEDED)
    (start,) = rig.starts(sent)
    assert start.at >= earliest


def test_a_foreign_message_waits_for_its_eta_in_the_broker(rig: Rig, note: Any) -> None:
    eta = time.time() + 0.2
    rig.put_raw(
        rig.plain(options={"eta": round(eta * 1000), "redis_message_id": None} | {})
    )  # stock's on Redis
    rig.put_raw(rig.plain(kwargs={"text": "timely"}, options={"eta": round(eta * 1000)}))
    rig.start()
    until(lambda: "timely" in note.seen)
    (start,) = [start for start in rig.witness.starts if b"timely" in start.body]
    assert start.at >= round(eta * 1000) / 1000


# --- failing


def test_a_failed_job_waits_in_the_broker_and_holds_up_no_worker(rig: Rig, note: Any) -> None:
    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(hours=1), jitter=False))
    def fails() -> None:
        raise OSError("no luck")

    failed = fails.send()
    rig.start(threads=1)
    record = rig.reaches(failed, State.RETRYING)
    assert record.due_at is not None
    assert 3500 < record.due_at - time.time() <= 3600
    note.send("meanwhile")
    until(lambda: note.seen)
    rig.finish(delayed=1)


def test_a_retry_counts_and_sends_the_original_bytes_and_never_comes_early(rig: Rig) -> None:
    @rig.actor(retries=RetryPolicy(attempts=5, base=timedelta(seconds=0.1), jitter=False))
    def fails_twice(items: list[int]) -> None:
        items.append(99)
        if current_job().attempt < 3:
            raise OSError(f"no luck {current_job().attempt}")

    # Spaced as no encoder of ours would space it.
    body = rig.plain(actor_name="fails-twice", kwargs={"items": [1]}, message_id=f"{rig.category}-retried")
    rig.put_raw(body)
    rig.start()
    record = rig.reaches(f"{rig.category}-retried", State.SUCCEEDED)
    rig.finish()
    starts = rig.witness.starts
    assert [start.attempt for start in starts] == [1, 2, 3]
    assert [start.body for start in starts] == [body] * 3
    assert [error.message for error in starts[2].headers.errors] == ["no luck 1", "no luck 2"]
    for before, after, wait in ((starts[0], starts[1], 0.1), (starts[1], starts[2], 0.2)):
        assert after.headers.ready_at is not None
        assert after.at >= after.headers.ready_at >= before.at + wait
    assert record.attempt == 3


def test_a_job_that_fails_for_good_leaves_its_whole_story(rig: Rig) -> None:
    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(seconds=0.1)))
    def fails(text: str) -> None:
        raise RuntimeError(f"attempt {current_job().attempt}")

    sent = fails.using(tags=["a", "b"]).send("é")
    rig.start()
    (letter,) = rig.letters()
    assert (letter.job_id, letter.actor, letter.queue) == (sent.message_id, "fails", rig.queue())
    assert [(a.attempt, a.type, a.message) for a in letter.attempts] == [
        (1, "RuntimeError", "attempt 1"),
        (2, "RuntimeError", "attempt 2"),
    ]
    assert all(attempt.worker for attempt in letter.attempts)
    assert letter.reason == "failed 2 times: RuntimeError: attempt 2"
    assert "raise RuntimeError" in letter.traceback
    assert len(letter.fingerprint) == 12
    assert letter.original == rig.starts(sent)[0].body
    assert (letter.tags, letter.death) == (["a", "b"], 1)
    record = rig.reaches(sent, State.DEAD)
    assert (record.attempt, record.fingerprint) == (2, letter.fingerprint)
    rig.finish()


def test_what_a_failing_job_carries_is_told_by_no_log(
    rig: Rig, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(seconds=0.1)))
    def log_in(phrase: SecretStr) -> None:
        raise OSError("no luck")

    cancelled = log_in.send(SecretStr("s3cret"))
    rig.store.cancel(cancelled.message_id, at=time.time())
    failing = log_in.send(SecretStr("s3cret"))
    rig.start()
    rig.letters()
    rig.reaches(cancelled, State.CANCELLED)
    rig.finish()
    told = caplog.text + capsys.readouterr().out
    assert failing.message_id in told
    assert "s3cret" not in told


def test_permanent_stops_at_once(rig: Rig) -> None:
    @rig.actor(retries=5)
    def fails() -> None:
        raise Permanent("no invoice 42")

    sent = fails.send()
    rig.start()
    (letter,) = rig.letters()
    assert letter.reason == "permanent: no invoice 42"
    assert len(rig.starts(sent)) == 1
    rig.finish()


def test_a_snooze_uses_no_attempt(rig: Rig) -> None:
    @rig.actor(retries=0)
    def sleepy() -> None:
        if len(rig.witness.starts) < 3:
            raise Snooze(timedelta(seconds=0.1), "not yet")

    sent = sleepy.send()
    rig.start()
    rig.reaches(sent, State.SUCCEEDED)
    rig.finish()
    starts = rig.starts(sent)
    assert [(start.attempt, start.headers.snoozes) for start in starts] == [(1, 0), (1, 1), (1, 2)]
    assert all(start.at >= (start.headers.ready_at or 0) for start in starts)


def test_whatever_a_job_raises_ends_no_thread(rig: Rig, note: Any) -> None:
    errors = [
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        MemoryError,
        StopIteration,
    ]

    @rig.actor(retries=0)
    def fails(n: int) -> None:
        raise errors[n]("out")

    fails.send_many([{"n": n} for n in range(len(errors))])
    crew = rig.start(threads=2)
    reasons = [letter.reason for letter in rig.letters(len(errors))]
    note.send("next")
    until(lambda: note.seen)
    assert all(thread.is_alive() for thread in crew.threads())
    rig.finish()
    assert sorted(reasons) == sorted(f"failed once: {error.__name__}: out" for error in errors)


def test_a_time_limit_ends_a_run(rig: Rig) -> None:
    options: dict[str, Any] = {"time_limit": timedelta(seconds=0.2), "retries": 0}
    end = time.monotonic() + PATIENCE

    @rig.actor(**options)
    def endless() -> None:
        while time.monotonic() < end:
            time.sleep(0.001)

    @rig.actor(**options)
    async def endless_async() -> None:
        await asyncio.sleep(PATIENCE)

    endless.send()
    endless_async.send()
    rig.start()
    for letter in rig.letters(2):
        assert letter.reason.startswith("failed once: TimeLimitExceeded")
    rig.finish()


# --- waiting, expiring, cancelling


def test_a_delayed_job_comes_on_time_and_never_early_whatever_waits_beside_it(rig: Rig, note: Any) -> None:
    for _ in range(20):
        note.using(delay=timedelta(days=200)).send("far")
    rig.start(threads=1)
    sent = [
        note.using(delay=timedelta(seconds=0.5)).send("last"),
        note.using(at=datetime.now(UTC) + timedelta(seconds=0.2)).send("near"),
        note.send("now"),
    ]
    for message in sent:
        rig.reaches(message, State.SUCCEEDED)
    assert note.seen == ["now", "near", "last"]
    for start in rig.witness.starts[1:]:
        assert start.headers.ready_at is not None
        assert 0 <= start.at - start.headers.ready_at < 5
    rig.finish(delayed=20)


def test_an_expired_job_never_starts(rig: Rig, note: Any) -> None:
    old = note.using(expires=timedelta(milliseconds=1)).send("old")
    time.sleep(0.005)
    fresh = note.using(expires=timedelta(hours=1)).send("fresh")
    rig.start()
    assert rig.reaches(old, State.EXPIRED).reason.startswith("not started before")
    rig.reaches(fresh, State.SUCCEEDED)
    rig.finish()
    assert note.seen == ["fresh"]


def test_a_cancelled_job_never_starts(rig: Rig, note: Any) -> None:
    stopped = note.send("stopped")
    later = note.using(delay=timedelta(seconds=0.2)).send("stopped later")
    rig.store.cancel(stopped.message_id, at=time.time())
    rig.store.cancel(later.message_id, at=time.time())
    rig.start()
    for message in (stopped, later):
        rig.reaches(message, State.CANCELLED)
    rig.finish()
    assert note.seen == []
    until(lambda: not rig.store.is_cancelled(stopped.message_id))


def test_a_running_job_sees_that_it_is_cancelled_and_ends_so(rig: Rig) -> None:
    running = threading.Event()
    end = time.monotonic() + PATIENCE

    @rig.actor()
    def long() -> None:
        running.set()
        while time.monotonic() < end:
            current_job().stop_if_cancelled()
            time.sleep(0.01)

    sent = long.send()
    rig.start()
    assert running.wait(PATIENCE)
    rig.store.cancel(sent.message_id, at=time.time())
    assert rig.reaches(sent, State.CANCELLED).reason == "cancelled while it ran"
    rig.finish()


def test_a_unique_job_is_queued_once_until_it_ends(rig: Rig, note: Any) -> None:
    first = note.using(unique="k").send("one")
    assert note.using(unique="k").send("two").message_id == first.message_id
    assert note.using(unique="other").send("other").message_id != first.message_id
    rig.start()
    rig.reaches(first, State.SUCCEEDED)
    third = until(
        lambda: (sent := note.using(unique="k").send("three")).message_id != first.message_id and sent
    )
    rig.reaches(third, State.SUCCEEDED)
    rig.finish()
    assert sorted(note.seen) == ["one", "other", "three"]


def test_a_job_that_is_sent_by_name_is_one_that_is_sent_by_actor(rig: Rig, note: Any) -> None:
    client = Client(Broker(rig.broker.driver, store=rig.store))  # it knows no actor

    def send(text: str, **options: Any) -> Any:
        return client.send("note", {"text": text}, category=rig.category, **options)

    first = note.using(unique="k").send("by actor")
    assert send("duplicate", unique="k").options["callboard"]["duplicate_of"] == first.message_id
    for_long = send("by name", unique="k", unique_for=timedelta(hours=1))  # such a key is another one
    many = client.send_many(
        "note", [{"text": "a"}, {"text": "b"}], category=rig.category, priority=Priority.LOW
    )
    awaited = asyncio.run(
        client.send_async("note", {"text": "c"}, category=rig.category, unique="c", unique_until="started")
    )
    many_awaited = asyncio.run(
        client.send_many_async("note", [{"text": "d"}, {"text": "e"}], category=rig.category)
    )
    rig.start()
    for sent in (first, for_long, *many, awaited, *many_awaited):
        rig.reaches(sent, State.SUCCEEDED)
    assert send("again", unique="k", unique_for=timedelta(hours=1)).message_id == for_long.message_id
    assert {sent.queue_name for sent in many} == {rig.queue(Priority.LOW)}
    rig.finish()
    assert sorted(note.seen) == ["a", "b", "by actor", "by name", "c", "d", "e"]


# --- what can't be read, trusted or understood


def broken_bodies(rig: Rig) -> list[bytes]:
    """One of each kind that makes a stock consumer loop for ever, or ends its threads one by one."""
    return [
        b"",
        b"no json",
        b"\x80\x04\x95",  # a pickle
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b'{"kwargs":' * 30_000,
        rig.plain(unknown_field=1),
        rig.plain(kwargs=[]),
        rig.plain(args={}),
        rig.plain(actor_name=5),
        rig.plain(message_id="../x"),
        rig.plain(message_timestamp="now"),
        rig.plain(options=None),
        rig.plain(options={"on_success": 5}),
        rig.plain(options={"pipe_target": {"a": 1}}),
        rig.plain(options={"max_retries": "many"}),
        rig.plain(options={"time_limit": []}),
        rig.plain(options={"eta": "soon"}),
        rig.plain(options={"group_completion_callbacks": 3}),
        rig.plain(options={"callboard": {"tags": 3}}),
        rig.plain(options={"callboard": "x"}),
        rig.plain(kwargs={"text": "x" * 400_000}),
    ]


def test_what_cannot_be_read_ends_in_quarantine_and_the_next_job_runs(
    rig: Rig, note: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "RECEIVE_LIMIT", 300_000)
    broken = broken_bodies(rig)
    crew = rig.start(threads=2)
    rig.put_raw(*broken)
    rig.put_raw(rig.plain(kwargs={"text": "headers"}), headers=b'{"attempt": "x"}')
    note.send("next")
    found = rig.quarantined(len(broken) + 1)
    until(lambda: note.seen)
    assert all(thread.is_alive() for thread in crew.threads())
    rig.finish()
    assert note.seen == ["next"]
    assert sorted(body for body, _ in found if b"headers" not in body) == sorted(broken)
    assert rig.store.counters()["quarantined"] == len(found)


def test_the_queue_is_the_one_it_came_from_whatever_the_body_says(rig: Rig, note: Any) -> None:
    rig.put_raw(
        rig.plain(queue_name="elsewhere.low", kwargs={"text": "a"}),
        rig.plain(queue_name=f"{rig.queue()}.DQ", kwargs={"text": "b"}),
        rig.plain(queue_name="", kwargs={"text": "c"}),
    )
    rig.start()
    until(lambda: len(note.seen) == 3)
    rig.finish()
    assert sorted(note.seen) == ["a", "b", "c"]


def test_arguments_that_do_not_fit_are_a_dead_letter_and_no_crash(rig: Rig, note: Any) -> None:
    rig.put_raw(rig.plain(kwargs={"text": 3}), rig.plain(kwargs={}), rig.plain(args=["a", "b"]))
    crew = rig.start(threads=2)
    assert len(rig.letters(3)) == 3
    note.send("next")
    until(lambda: note.seen)
    assert all(thread.is_alive() for thread in crew.threads())
    rig.finish()


def test_what_no_worker_knows_is_parked_and_dead_after_its_deadline(
    rigs: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_PARK_FIRST", 0.1)
    rig = rigs(park_deadline=0.05)
    note = declare_note(rig)
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("knows the actor 'newer'", {"actor_name": "newer"}),
        ("options that aren't known here: from_the_future", {"options": {"from_the_future": 1}}),
        ("envelope version 9", {"options": {"callboard": {"v": 9}}}),
        ("payload is of version 7", {"options": {"callboard": {"v": 1, "payload_version": 7}}}),
        ("doesn't know: from_the_future", {"options": {"callboard": {"v": 1, "from_the_future": 1}}}),
    ]
    bodies = {rig.plain(**fields): reason for reason, fields in unknown}
    rig.put_raw(*bodies)
    rig.start()
    letters = {letter.original: letter for letter in rig.letters(len(bodies))}
    for body, reason in bodies.items():
        assert letters[body].reason.startswith("parked for 0:00:0")
        assert reason in letters[body].reason
        assert letters[body].attempts == []
    rig.finish()
    assert rig.witness.starts == []
    assert note.seen == []


def test_a_parked_job_runs_when_a_worker_knows_it(
    rig: Rig, note: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_PARK_FIRST", 0.1)
    ran: list[str] = []
    job_id = f"{rig.category}-parked"
    rig.put_raw(rig.plain(actor_name="newer", message_id=job_id))
    rig.start()
    assert "newer" in rig.reaches(job_id, State.PARKED).reason

    @rig.actor()
    def newer(text: str) -> None:
        ran.append(text)

    rig.reaches(job_id, State.SUCCEEDED)
    rig.finish()
    assert ran == ["plain"]
    assert [start.attempt for start in rig.witness.starts] == [1]


def test_with_keys_what_is_forged_or_changed_is_quarantined_and_never_runs(rigs: Callable[..., Rig]) -> None:
    signer = Signer.parse("k:0123456789abcdef")
    rig = rigs(signer=signer)
    note = declare_note(rig)
    good, other = rig.plain(), rig.plain()
    right = envelope.encode_headers(Headers(signature=signer.sign(rig.queue(), good)))
    elsewhere = envelope.encode_headers(Headers(signature=signer.sign(rig.queue(Priority.LOW), other)))
    target = json.loads(rig.plain())
    rig.put_raw(
        rig.plain(),
        rig.plain(options={"on_success": "note"}),
        rig.plain(options={"pipe_target": target}),
        rig.plain(options={"group_completion_callbacks": [target]}),
    )
    rig.put_raw(good.replace(b"plain", b"PLAIN"), headers=right)
    rig.put_raw(other, headers=elsewhere)
    sent = note.send("signed")
    rig.start()
    reasons = [reason for _, reason in rig.quarantined(6)]
    rig.reaches(sent, State.SUCCEEDED)
    rig.finish()
    assert note.seen == ["signed"]
    assert len([reason for reason in reasons if "isn't signed" in reason]) == 4
    assert len([reason for reason in reasons if "signature is wrong" in reason]) == 2


def test_with_keys_a_job_keeps_its_signature_through_delay_retry_death_and_replay(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(signer=Signer.parse("k:0123456789abcdef"))

    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(seconds=0.1)))
    def mended() -> None:
        if not current_job().replayed:
            raise OSError

    sent = mended.using(delay=timedelta(seconds=0.1)).send()
    rig.start()
    rig.letters()
    rig.reaches(sent, State.DEAD)
    Operations(rig.broker).dead.replay(Letters(ids=[sent.message_id]))
    rig.reaches(sent, State.SUCCEEDED)
    assert [start.attempt for start in rig.starts(sent)] == [1, 2, 1]


# --- hooks that fail


class Fails(Middleware):
    """Fails in one hook: with these errors, one after the other, then no more."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self.calls: list[float] = []
        self._errors = errors

    def _fail(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append(time.time())
        if len(self.calls) <= len(self._errors):
            raise self._errors[len(self.calls) - 1]("broken hook")


def failing(hook: str, *errors: type[BaseException]) -> Fails:
    """Of a class of its own, since the broker looks at classes to see which hooks there are."""
    middleware: Fails = type("Fails", (Fails,), {hook: Fails._fail})(*errors)
    return middleware


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_hook_that_fails_uses_no_attempt_loses_nothing_and_makes_no_hot_loop(
    rig: Rig, note: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(settling, "_HOOK_FIRST", 0.1)
    hook = failing(f"{where}_process_message", RuntimeError, SystemExit)
    rig.broker.add_middleware(hook)
    sent = note.send("guarded")
    crew = rig.start(threads=1)
    record = rig.reaches(sent, State.SUCCEEDED)
    assert all(thread.is_alive() for thread in crew.threads())
    rig.finish()
    assert len(hook.calls) == 3
    assert hook.calls[1] - hook.calls[0] >= 0.1
    assert hook.calls[2] - hook.calls[1] >= 0.2
    assert note.seen == ["guarded"] * (1 if where == "before" else 3)
    assert record.attempt == 1


def test_a_hook_that_always_fails_makes_a_dead_letter(
    rig: Rig, note: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_HOOK_FIRST", 0.1)
    monkeypatch.setattr(settling, "MAX_HOOK_FAILURES", 2)
    rig.broker.add_middleware(failing("before_process_message", *[RuntimeError] * 100))
    note.send("guarded")
    rig.start()
    (letter,) = rig.letters()
    rig.finish()
    assert letter.reason == "middleware: Fails._fail: RuntimeError: broken hook"
    assert (letter.headers.attempt, letter.headers.hook_failures) == (0, 1)
    assert note.seen == []


def test_hooks_around_an_ack_may_fail(rig: Rig) -> None:
    @rig.actor(retries=0)
    def job(fails: bool) -> None:
        if fails:
            raise Permanent("out")

    errors = [RuntimeError, SkipMessage, SystemExit]
    hooks = [failing(hook, *errors) for hook in ("before_ack", "after_ack", "before_nack", "after_nack")]
    for hook in hooks:
        rig.broker.add_middleware(hook)
    sent = job.send_many([{"fails": fails} for _ in errors for fails in (False, True)])
    crew = rig.start(threads=1)
    rig.letters(3)
    until(lambda: all(len(hook.calls) == 3 for hook in hooks))
    assert all(thread.is_alive() for thread in crew.threads())
    rig.finish()
    assert [len(rig.starts(message)) for message in sent] == [1] * 6


def test_a_hook_that_skips_a_job_ends_it_as_discarded(rig: Rig, note: Any) -> None:
    rig.broker.add_middleware(failing("before_process_message", SkipMessage))
    skipped = note.send("skipped")
    rig.start(threads=1)
    assert rig.reaches(skipped, State.DISCARDED).reason == "skipped by Fails._fail"
    rig.finish()
    assert note.seen == []


# --- what follows a job


def test_a_pipeline_feeds_each_result_into_the_next_payload(rig: Rig) -> None:
    seen: list[tuple[int, str]] = []

    @rig.actor()
    def first(n: int) -> dict[str, int]:
        return {"total": n * 2}

    @rig.actor()
    def second(total: int, to: str) -> int:
        return total + 1

    @dramatiq.actor(broker=rig.broker, queue_name=f"{rig.category}-stock")
    def third(to: str, total: int) -> None:
        seen.append((total, to))

    last: Any = third  # complete only with what the job before it returns
    pipeline: Any = first.message(21) | second.partial(to="ada") | last.message("bob")
    pipeline.run()
    rig.start()
    until(lambda: seen)
    assert seen == [(43, "bob")]


def test_a_group_tells_when_all_are_done_and_callbacks_tell_of_each(rig: Rig) -> None:
    done = threading.Event()
    told: list[Any] = []

    @rig.actor()
    def all_done() -> None:
        done.set()

    @rig.actor()
    def tell(message_data: dict[str, Any], result: Any) -> None:
        told.append(result)

    @rig.actor(on_success=tell, retries=RetryPolicy(base=timedelta(seconds=0.1)))
    def part(n: int) -> int:
        if n == 2 and current_job().attempt == 1:
            raise OSError
        return n

    make_group: Any = dramatiq.group  # it has no annotations
    group = make_group([part.message(n) for n in range(5)], broker=rig.broker)
    group.add_completion_callback(all_done.message())
    group.run()
    rig.start()
    assert done.wait(PATIENCE)
    until(lambda: len(told) == 5)
    assert sorted(told) == list(range(5))


def test_results_are_kept_where_asked(rig: Rig) -> None:
    @rig.actor(store_results=True)
    def add(a: int, b: int) -> int:
        return a + b

    sent = add.send(1, 2)
    rig.start()
    backend = rig.broker.get_results_backend()
    assert sent.get_result(backend=backend, block=True, timeout=int(PATIENCE * 1000)) == 3


def test_a_payload_of_an_older_version_is_brought_up_to_date_for_each_run(rig: Rig) -> None:
    ran: list[tuple[list[str], int]] = []

    @rig.actor(
        name="note",
        version=3,
        upcast={
            1: lambda fields: {"texts": [fields["text"]]},
            2: lambda fields: {"lines": [*fields["texts"], "upcast"]},
        },
        retries=RetryPolicy(base=timedelta(milliseconds=1), jitter=False),
    )
    def note(lines: list[str]) -> None:
        ran.append((lines, current_job().attempt))
        if len(ran) == 1:
            raise ConnectionError("and the retry is of the original bytes")

    first, second = f"{rig.category}-v1", f"{rig.category}-v2"
    rig.put_raw(rig.plain(message_id=first))
    rig.start(threads=1)
    rig.reaches(first, State.SUCCEEDED)
    options = {"callboard": {"v": 1, "payload_version": 2}}
    rig.put_raw(rig.plain(message_id=second, kwargs={"texts": ["two"]}, options=options))
    rig.reaches(second, State.SUCCEEDED)
    rig.reaches(note.send(lines=["new"]), State.SUCCEEDED)
    rig.finish()
    assert ran == [(["plain", "upcast"], 1), (["plain", "upcast"], 2), (["two", "upcast"], 1), (["new"], 1)]


def test_a_payload_that_cannot_be_brought_up_to_date_is_parked_until_a_worker_can(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_PARK_FIRST", 0.1)
    ran: list[list[str]] = []

    @rig.actor(name="note", version=2, upcast={1: lambda fields: {"texts": fields["words"]}})
    def note(texts: list[str]) -> None:
        ran.append(texts)

    @rig.actor(name="other", version=2)
    def other(text: str, number: int) -> None: ...

    failed, unfit = f"{rig.category}-failed", f"{rig.category}-unfit"
    rig.put_raw(
        rig.plain(message_id=failed, kwargs={"text": "one"}), rig.plain(message_id=unfit, actor_name="other")
    )
    rig.start(threads=1)
    reason = rig.reaches(failed, State.PARKED).reason
    assert reason is not None
    assert reason.startswith(
        "its payload of version 1 can't be made one of version 2: the step from version 1 "
    )
    assert "KeyError: 'words'" in reason
    assert "'number' is missing" in str(rig.reaches(unfit, State.PARKED).reason)
    note.steps[1] = lambda fields: {"texts": [fields["text"]]}  # as the next deploy has it
    rig.reaches(failed, State.SUCCEEDED)
    assert ran == [["one"]]


# --- order


def test_jobs_run_by_their_own_priority(rig: Rig, gate: Gate) -> None:
    order: list[int] = []

    @rig.actor()
    def note_priority(priority: int) -> None:
        order.append(priority)

    def send_all() -> None:
        for priority in (Priority.LOW, Priority.MEDIUM, Priority.HIGH, Priority.CRITICAL):
            note_priority.using(priority=priority).send(int(priority))

    if rig.worker_name == "callboard":
        send_all()
        rig.start(threads=1)
    else:  # it has one consumer a queue, and starts whatever the first of them brings
        gate.actor.using(priority=Priority.CRITICAL).send()
        crew = rig.start(threads=1)
        until(lambda: gate.inside)
        send_all()
        all_within_reach(rig, crew, 4)
        gate.opened.set()
    until(lambda: len(order) == 4)
    assert order == [1, 2, 3, 4]


# --- stopping


def test_a_worker_that_stops_gives_unstarted_jobs_back_at_once_and_finishes_what_runs(
    rig: Rig, gate: Gate
) -> None:
    sent = [gate.actor.send() for _ in range(4)]
    crew = rig.start(threads=1)
    until(lambda: gate.inside)
    if rig.worker_name == "dramatiq":
        until(lambda: crew.within_reach() > 0)  # it has something to give back
    stopping = threading.Thread(target=rig.stop)
    stopping.start()
    others = rig.elsewhere()
    given_back = take(others, 3)  # while the first still runs
    assert gate.inside == 1
    assert all(delivery.headers == b"" for delivery in given_back)
    gate.opened.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert len(gate.passed) == 1
    ids = [json.loads(delivery.body)["message_id"] for delivery in given_back]
    assert sorted([*ids, *gate.passed]) == sorted(message.message_id for message in sent)
    assert_nothing_comes(others)  # what ran is gone


def test_a_job_that_outlasts_the_grace_never_runs_beside_itself(
    rig: Rig, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "INTERRUPT_SECONDS", 0.1)
    gate.actor.send()
    rig.start(threads=1)
    until(lambda: gate.inside)
    rig.stop_within(0.1)  # the job waits in C code, where nothing interrupts it
    others = rig.elsewhere()
    assert_nothing_comes(others)
    assert gate.inside == 1


def test_a_job_that_is_interrupted_goes_back_uncounted(rig: Rig) -> None:
    if rig.worker_name == "dramatiq":
        pytest.skip("Dramatiq's worker interrupts nothing: what outlasts its grace ends with the process")
    running = threading.Event()
    end = time.monotonic() + PATIENCE

    @rig.actor()
    def long() -> None:
        running.set()
        while time.monotonic() < end:
            pass

    sent = long.send()
    rig.start(threads=1)
    assert running.wait(PATIENCE)
    rig.stop_within(0.1)
    (delivery,) = take(rig.elsewhere(), 1)
    assert json.loads(delivery.body)["message_id"] == sent.message_id
    assert envelope.decode_headers(delivery.headers).attempt == 0


def test_a_retry_resumes_from_the_checkpoint_which_goes_when_the_job_ends(rig: Rig) -> None:
    found: list[Any] = []

    @rig.actor(retries=RetryPolicy(base=timedelta(milliseconds=1), jitter=False))
    def import_rows() -> None:
        job = current_job()
        found.append(job.last_checkpoint())
        if job.attempt < 3:
            job.checkpoint({"row": job.attempt})
            raise ConnectionError("in the middle")

    sent = import_rows.send()
    rig.start(threads=1)
    rig.reaches(sent, State.SUCCEEDED)
    rig.finish()
    assert found == [None, {"row": 1}, {"row": 2}]
    assert rig.broker.load_checkpoint(sent.message_id) is None


def test_a_dead_letter_keeps_its_checkpoint_for_a_replay(rig: Rig) -> None:
    @rig.actor(retries=0)
    def import_rows() -> None:
        current_job().checkpoint({"row": 7})
        raise ValueError("bad row")

    sent = import_rows.send()
    rig.start(threads=1)
    rig.reaches(sent, State.DEAD)
    rig.stop()
    assert rig.broker.load_checkpoint(sent.message_id) == b'{"row":7}'


def test_a_worker_can_be_started_again(rig: Rig, note: Any) -> None:
    for text in ("one", "two"):
        rig.start()
        rig.reaches(note.send(text), State.SUCCEEDED)
        rig.finish()
    assert note.seen == ["one", "two"]


# --- pausing


def test_a_paused_queue_rests_within_a_second_and_goes_on_within_a_second(rig: Rig, note: Any) -> None:
    rig.broker.control = ControlWatch(rig.store)  # at its own pace
    rig.start(threads=1)
    rig.reaches(note.send("before"), State.SUCCEEDED)
    rig.store.pause(rig.queue())
    asked = time.monotonic()
    until(lambda: rig.broker.is_paused(rig.queue()))
    assert time.monotonic() - asked < 5  # four of these are for a slow machine
    time.sleep(LULL)  # who has been told obeys at once
    note.send("held")
    rig.reaches(note.using(priority=Priority.LOW).send("other queue"), State.SUCCEEDED)
    time.sleep(LULL)
    assert note.seen == ["before", "other queue"]
    rig.store.resume(rig.queue())
    asked = time.monotonic()
    until(lambda: "held" in note.seen)
    assert time.monotonic() - asked < 5
    rig.finish()


def test_what_a_worker_has_fetched_of_a_paused_queue_is_not_started(rig: Rig, gate: Gate, note: Any) -> None:
    gate.actor.using(priority=Priority.CRITICAL).send()
    crew = rig.start(threads=1)
    until(lambda: gate.inside)
    for n in range(2):
        note.send(str(n))
    all_within_reach(rig, crew, 2)
    rig.store.pause(rig.queue())
    until(lambda: rig.broker.is_paused(rig.queue()))
    time.sleep(LULL)  # who has been told obeys at once
    gate.opened.set()
    rig.reaches(note.using(priority=Priority.LOW).send("other queue"), State.SUCCEEDED)
    time.sleep(LULL)
    assert note.seen == ["other queue"]
    rig.store.resume(rig.queue())
    until(lambda: len(note.seen) == 3)
    rig.finish()


def test_a_worker_that_starts_obeys_the_pauses_that_there_are(rig: Rig, note: Any) -> None:
    rig.store.pause(rig.queue())
    note.send("paused")
    rig.start()
    rig.reaches(note.using(priority=Priority.LOW).send("other queue"), State.SUCCEEDED)
    time.sleep(LULL)
    assert note.seen == ["other queue"]
    rig.store.resume(rig.queue())
    until(lambda: len(note.seen) == 2)
    rig.finish()


# --- when something is away


def test_a_move_that_fails_keeps_the_job_until_it_succeeds(rig: Rig) -> None:
    refusal = rig.refuse_moves()

    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(seconds=0.1)))
    def fails() -> None:
        refusal.over = False
        raise OSError("no luck")

    sent = fails.send()
    rig.start(threads=1)
    until(lambda: len(refusal.refused) >= 2)  # it tries again to put the job back
    others = rig.elsewhere()
    assert_nothing_comes(others)  # nobody else gets it meanwhile
    others.close()
    refusal.over = True
    until(lambda: len(rig.starts(sent)) == 2)
    tried = len(refusal.refused)
    until(lambda: len(refusal.refused) >= tried + 2)  # and now, to make a dead letter
    assert rig.ready(dead_queue(rig.category)) == 0
    refusal.over = True
    (letter,) = rig.letters()
    assert (letter.job_id, len(letter.attempts)) == (sent.message_id, 2)
    rig.finish()


def test_a_worker_that_stops_while_a_move_fails_gives_the_job_back(rig: Rig) -> None:
    refusal = rig.refuse_moves()

    @rig.actor(retries=0)
    def fails() -> None:
        raise OSError("no luck")

    sent = fails.send()
    rig.start(threads=1)
    until(lambda: refusal.refused)
    rig.stop()
    (delivery,) = take(rig.elsewhere(), 1)
    assert delivery.body == rig.starts(sent)[0].body
    assert envelope.decode_headers(delivery.headers).attempt == 0
    assert rig.ready(dead_queue(rig.category)) == 0


def test_a_store_that_is_away_stops_no_job(rig: Rig, note: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @rig.actor(retries=RetryPolicy(base=timedelta(seconds=0.1)))
    def fails_once() -> None:
        if current_job().attempt == 1:
            raise OSError

    def away(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailable("the store is away")

    rig.start()
    with monkeypatch.context() as patch:
        for method in Store.__abstractmethods__ - {"close"}:
            patch.setattr(rig.store, method, away)
        note.send("away")
        sent = fails_once.send()
        until(lambda: note.seen and len(rig.starts(sent)) == 2)
    record = rig.reaches(sent, State.SUCCEEDED)  # what was to be recorded meanwhile has waited
    assert record.attempt == 2
    rig.finish()


def test_a_connection_that_is_closed_while_jobs_run_loses_none_and_acks_no_other(
    rig: Rig, gate: Gate, note: Any, request: pytest.FixtureRequest
) -> None:
    if rig.driver_name != "rabbitmq":
        pytest.skip("only RabbitMQ takes claims back from a worker that lives")
    node: PrivateRabbitmq = request.getfixturevalue("rabbitmq")
    held = gate.actor.using(priority=Priority.CRITICAL).send()
    crew = rig.start(threads=1)
    until(lambda: gate.inside)
    waiting = [note.send(str(n)) for n in range(2)]
    all_within_reach(rig, crew, 2)
    (running,) = rig.broker.running.values()
    held_claims = [running, *crew.unstarted()]
    node.close_all_connections()
    until(lambda: not any(claim.intake.holds(claim.delivery) for claim in held_claims))
    gate.opened.set()
    # The ack of what ran went to the closed connection, so its message comes again.
    until(lambda: len(gate.passed) + rig.witness.skipped.count(held.message_id) == 2)
    for message in waiting:
        rig.reaches(message, State.SUCCEEDED)
    rig.finish()
    assert sorted(note.seen) == ["0", "1"]  # none was started through the claim that was gone, too
    if rig.worker_name == "callboard":
        assert gate.passed == [held.message_id], "its record told that it had ended"


# --- dead letters


def test_a_walk_replays_and_discards_while_a_worker_runs(rig: Rig) -> None:
    mended = threading.Event()

    @rig.actor(retries=RetryPolicy(attempts=2, base=timedelta(seconds=0.1)))
    def fails(n: int) -> None:
        if not mended.is_set():
            raise OSError(f"no luck with {n}")

    @rig.actor(retries=0)
    def wrong() -> None:
        raise ValueError

    sent = [fails.send(n) for n in range(4)]
    bad = [wrong.send() for _ in range(3)]
    rig.start()
    letters = rig.letters(7)
    for message in (*sent, *bad):
        rig.reaches(message, State.DEAD)
    mended.set()
    dead = Operations(rig.broker).dead
    (fingerprint,) = {letter.fingerprint for letter in letters if letter.actor == "fails"}
    replayed = dead.replay(Letters(fingerprint=fingerprint, categories=[rig.category]))
    assert sorted(replayed.job_ids) == sorted(message.message_id for message in sent)
    for message in sent:
        assert rig.reaches(message, State.SUCCEEDED).attempt == 1
        assert rig.starts(message)[-1].headers.deaths == 1
    assert len(rig.letters(3)) == 3
    discarded = dead.discard(Letters(ids=[bad[0].message_id]), reason="no use")
    assert discarded.job_ids == [bad[0].message_id]
    rig.reaches(bad[0], State.DISCARDED)
    assert {letter.job_id for letter in rig.letters(2)} == {message.message_id for message in bad[1:]}
    rig.finish()


def test_a_letter_is_replayed_with_a_mended_payload(rig: Rig) -> None:
    @rig.actor(retries=0)
    def divide(by: int) -> float:
        return 1 / by

    sent = divide.send(by=0)
    rig.start()
    rig.letters()
    rig.reaches(sent, State.DEAD)
    result = Operations(rig.broker).dead.replay(Letters(ids=[sent.message_id]), payload={"by": 2})
    assert result.job_ids == [sent.message_id]
    rig.reaches(sent, State.SUCCEEDED)
    rig.finish()
    assert json.loads(rig.starts(sent)[-1].body)["kwargs"] == {"by": 2}
