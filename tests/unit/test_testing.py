"""The pytest plugin for people who write actors, on the whole stack."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dramatiq
import pytest
from dramatiq import Middleware
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from callboard import Cancelled, Permanent, Priority, RetryPolicy, Snooze, State, cron, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import JobNotFound, UnknownActor
from callboard.metrics import Metrics
from callboard.store import open_store
from callboard.testing import Drained, JobDied, Jobs, NeverCrashed, NeverDrained, jobs_of
from callboard.worker.worker import Worker
from middleware import stack

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


def _new_broker() -> Broker:
    store = open_store("memory:")
    return Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))


@pytest.fixture(scope="module")
def callboard_broker() -> Broker:
    """Takes the place of the plugin's own, which imports the application's."""
    return _new_broker()


@pytest.fixture(autouse=True)
def global_broker(callboard_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dramatiq.broker, "global_broker", callboard_broker)


@pytest.fixture
def actor(callboard_broker: Broker) -> ActorDecorator:
    return ActorDecorator(callboard_broker)


@pytest.fixture
def seen() -> list[Any]:
    """What the jobs of a test leave behind."""
    return []


@pytest.fixture
def note(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> Any:
    @actor(category="jobs")
    def note(text: str) -> None:
        seen.append(text)

    return note


# -- looking ---------------------------------------------------------------------------------------------


def test_what_waits_is_what_came_back_from_json(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(category="billing", priority=Priority.HIGH)
    def remind(day: date, to: set[str]) -> None: ...

    sent = remind.using(tags=["late"]).send(day=date(2026, 7, 1), to={"ada"})
    (job,) = jobs.waiting
    assert (job.id, job.actor, job.queue, job.priority) == (sent.message_id, "remind", "billing.high", 2)
    assert job.kwargs == {"day": "2026-07-01", "to": ["ada"]}
    assert job.payload == {"day": date(2026, 7, 1), "to": {"ada"}}
    assert (job.due, job.tags, job.attempt, job.state) == (None, ("late",), 1, State.QUEUED)


def test_a_waiting_job_prints_as_the_call_it_stands_for(jobs: Jobs, note: Any) -> None:
    sent = note.using(delay=timedelta(hours=1), tags=["a"]).send("hello")
    until = (jobs.clock.now + timedelta(hours=1)).isoformat()
    assert repr(jobs.waiting) == (
        f"[<note(text='hello') in jobs.medium, scheduled until {until}, tags a, id {sent.message_id}>]"
    )


def test_jobs_wait_by_priority_and_then_by_the_time_they_are_due(jobs: Jobs, note: Any) -> None:
    note.using(delay=timedelta(hours=2)).send("fifth")
    note.using(priority=Priority.LOW).send("third")
    note.using(delay=timedelta(hours=1)).send("fourth")
    note.using(priority=Priority.HIGH).send("first")
    note.send("second")
    assert [job.kwargs["text"] for job in jobs.waiting] == ["first", "second", "third", "fourth", "fifth"]


def test_the_waiting_jobs_of_one_actor_are_found_by_it_and_by_its_name(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs")
    def write_down() -> None: ...

    note.send("a")
    sent = write_down.send()
    for key in (write_down, "write-down", "write_down"):
        assert [job.id for job in jobs.waiting_for(key)] == [sent.message_id]
    with pytest.raises(UnknownActor, match="did you mean 'write-down'"):
        jobs.waiting_for("write-dawn")


def test_a_job_that_was_not_sent_has_no_state(jobs: Jobs) -> None:
    with pytest.raises(JobNotFound, match="'nope'"):
        jobs.state("nope")


# -- draining --------------------------------------------------------------------------------------------


def test_drain_runs_what_waits_and_what_that_sends(
    jobs: Jobs, actor: ActorDecorator, seen: list[Any]
) -> None:
    @actor(category="jobs")
    def count_down(n: int) -> None:
        seen.append((n, current_job().attempt))
        if n:
            count_down.send(n - 1)

    sent = count_down.send(2)
    report = jobs.drain()
    assert seen == [(2, 1), (1, 1), (0, 1)]
    assert report.succeeded == 3
    assert repr(report) == "<Drained succeeded: 3>"
    assert jobs.waiting == []
    assert jobs.state(sent) is State.SUCCEEDED


def test_drain_moves_the_clock_to_delayed_jobs(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    jobs.clock.advance(timedelta(days=5))
    start = jobs.clock.now
    note.using(delay=timedelta(days=2)).send("later")
    note.using(at=start + timedelta(days=1)).send("sooner")
    assert [job.due for job in jobs.waiting] == [start + timedelta(days=1), start + timedelta(days=2)]
    jobs.drain()
    assert seen == ["sooner", "later"]
    assert jobs.clock.now == start + timedelta(days=2)


def test_drain_can_leave_the_clock_alone(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    start = jobs.clock.now
    note.using(delay=timedelta(seconds=1)).send("later")
    note.send("now")
    jobs.drain(advance=False)
    assert seen == ["now"]
    assert jobs.clock.now == start
    jobs.clock.advance(timedelta(seconds=1))
    jobs.drain(advance=False)
    assert seen == ["now", "later"]


def test_drain_lets_so_much_time_pass_and_no_more(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    start = jobs.clock.now
    for hours in (1, 3):
        note.using(delay=timedelta(hours=hours)).send(f"after {hours}")
    jobs.drain(until=timedelta(hours=2))
    assert (seen, jobs.clock.now) == (["after 1"], start + timedelta(hours=2))
    jobs.drain(until=start + timedelta(hours=3))
    assert (seen, jobs.clock.now) == (["after 1", "after 3"], start + timedelta(hours=3))


def test_a_clock_that_is_moved_to_a_due_time_has_reached_it(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    for n in range(1, 201):
        note.using(delay=timedelta(seconds=n / 7)).send(str(n))
    for n in range(1, 201):
        jobs.clock.advance_to(jobs.waiting[0].due or jobs.clock.now)
        jobs.drain(advance=False)
        assert seen[-1] == str(n)


def test_the_clock_does_not_go_back(jobs: Jobs) -> None:
    with pytest.raises(ValueError, match="can't go back"):
        jobs.clock.advance(timedelta(seconds=-1))


def test_retries_wait_on_the_fake_clock(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> None:
    @actor(category="jobs", retries=RetryPolicy(attempts=3, base=timedelta(minutes=1), jitter=False))
    def flaky() -> None:
        seen.append((jobs.clock.now, current_job().attempt))
        if len(seen) < 3:
            raise ConnectionError("away")

    start = jobs.clock.now
    sent = flaky.send()
    report = jobs.drain()
    minute = timedelta(minutes=1)
    assert seen == [(start, 1), (start + minute, 2), (start + 3 * minute, 3)]
    assert (report.retried, report.succeeded, report.dead) == (2, 1, 0)
    record = jobs.record(sent)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 3)
    assert record.finished_at == (start + 3 * minute).timestamp()
    assert [event.text for event in record.events] == [
        "attempt 1 failed: ConnectionError: away",
        "attempt 2 failed: ConnectionError: away",
    ]


def test_a_failed_run_waits_with_its_reason(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(category="jobs")
    def flaky() -> None:
        raise ConnectionError("away")

    flaky.send()
    assert jobs.drain(advance=False).retried == 1
    (job,) = jobs.waiting
    assert (job.state, job.attempt) == (State.RETRYING, 2)
    assert job.reason == "attempt 1 failed: ConnectionError: away"
    assert job.due is not None
    assert job.due > jobs.clock.now


class NoInvoice(Exception):
    pass


@pytest.mark.parametrize("is_async", [False, True])
def test_a_job_that_dies_fails_the_test_with_its_own_exception(
    jobs: Jobs, actor: ActorDecorator, is_async: bool
) -> None:
    def look_up() -> None:
        raise NoInvoice("no invoice 42")

    async def bill_async() -> None:
        look_up()

    def bill() -> None:
        look_up()

    billed: Any = actor(category="jobs", name="bill", retries=1)(bill_async if is_async else bill)
    sent = billed.send()
    with pytest.raises(NoInvoice, match="no invoice 42") as caught:
        jobs.drain()
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-2:] == ["bill_async" if is_async else "bill", "look_up"]
    assert "_process" not in frames
    assert caught.value.__notes__ == [f"raised by 'bill', attempt 2 of job {sent.message_id}: dead"]
    assert jobs.state(sent) is State.DEAD


def test_a_test_may_expect_a_death(jobs: Jobs, actor: ActorDecorator, note: Any, seen: list[Any]) -> None:
    @actor(category="jobs")
    def refuse() -> None:
        raise Permanent("no invoice 42")

    sent = refuse.send()
    note.send("goes on")
    report = jobs.drain(fail=False)
    assert (report.dead, report.succeeded, seen) == (1, 1, ["goes on"])
    (letter,) = jobs.dead
    assert (letter.job_id, letter.reason) == (sent.message_id, "permanent: no invoice 42")
    assert isinstance(report.runs[0].error, Permanent)


def test_a_job_that_nobody_knows_fails_the_test(jobs: Jobs, callboard_broker: Broker) -> None:
    message: dramatiq.Message[Any] = dramatiq.Message(
        queue_name="jobs.low", actor_name="from-nowhere", args=(), kwargs={}, options={}
    )
    callboard_broker.enqueue(message)
    with pytest.raises(JobDied, match=r"knows the actor 'from-nowhere'; import the module that declares it"):
        jobs.drain()


def test_a_message_that_ends_in_quarantine_fails_the_test(
    jobs: Jobs, note: Any, callboard_broker: Broker, seen: list[Any]
) -> None:
    from callboard.brokers.driver import Outgoing

    callboard_broker.driver.put([Outgoing("jobs.medium", b"no json", "x")], deadline=1)
    note.send("next")
    assert [job.actor for job in jobs.waiting] == ["unreadable", "note"]
    with pytest.raises(JobDied, match=r"a message is quarantined: from jobs\.medium: the body is no message"):
        jobs.drain()
    assert jobs.drain().count("quarantined") == 0
    assert seen == ["next"]


def test_a_job_without_end_is_told_apart(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(category="jobs")
    def again() -> None:
        again.send()

    again.send()
    with pytest.raises(NeverDrained, match=r"after 50 runs .* the last were 51 of 'again'"):
        jobs.drain(max_jobs=50)


def test_max_jobs_that_end_are_no_failure(jobs: Jobs, note: Any) -> None:
    for n in range(5):
        note.send(str(n))
    assert jobs.drain(max_jobs=5).succeeded == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, pytest.fail.Exception])
def test_what_is_to_end_the_test_is_no_failure_of_the_job(
    jobs: Jobs, actor: ActorDecorator, error: type[BaseException]
) -> None:
    @actor(category="jobs")
    def stop() -> None:
        raise error

    stop.send()
    with pytest.raises(error):
        jobs.drain(fail=False)


def test_a_snooze_uses_no_attempt(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> None:
    @actor(category="jobs")
    def sleepy() -> None:
        seen.append(current_job().attempt)
        if len(seen) < 3:
            raise Snooze(timedelta(hours=1), "not yet")

    sleepy.send()
    report = jobs.drain()
    assert (seen, report.snoozed, report.succeeded) == ([1, 1, 1], 2, 1)


def test_a_job_that_was_not_started_in_time_expires(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    sent = note.using(expires=timedelta(minutes=5)).send("late")
    jobs.clock.advance(timedelta(minutes=6))
    in_time = note.using(expires=timedelta(minutes=5)).send("in time")
    assert jobs.drain().expired == 1
    assert (jobs.state(sent), jobs.state(in_time)) == (State.EXPIRED, State.SUCCEEDED)
    assert seen == ["in time"]


def test_a_job_is_cancelled_before_and_during_its_run(
    jobs: Jobs, actor: ActorDecorator, note: Any, seen: list[Any]
) -> None:
    @actor(category="jobs")
    def long() -> None:
        assert not current_job().cancelled()
        jobs.cancel(current_job().id)
        if current_job().cancelled():
            raise Cancelled
        seen.append("went on")

    before, during = note.send("never"), long.send()
    jobs.cancel(before)
    assert jobs.drain().cancelled == 2
    assert jobs.state(before) is jobs.state(during) is State.CANCELLED
    assert seen == []


def test_nothing_is_claimed_from_a_paused_queue(jobs: Jobs, note: Any, seen: list[Any]) -> None:
    assert jobs.broker.store is not None
    note.send("a")
    jobs.drain()
    jobs.broker.store.pause("jobs.medium")
    note.send("b")
    assert jobs.drain().runs == []
    jobs.broker.store.resume("jobs.medium")
    jobs.drain()
    assert seen == ["a", "b"]


def test_an_async_actor_runs_and_sees_its_job(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> None:
    @actor(category="jobs")
    async def slow(text: str) -> None:
        await asyncio.sleep(0)
        seen.append((text, current_job().id))

    sent = slow.send("a")
    jobs.drain()
    assert seen == [("a", sent.message_id)]


def test_a_test_may_be_async(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> None:
    @actor(category="jobs")
    async def follow(text: str) -> None:
        seen.append(text)

    @actor(category="jobs")
    async def lead(text: str) -> None:
        await follow.send_async(text)

    async def the_test() -> None:
        await lead.send_async("here")
        jobs.drain()
        await lead.send_async("in a thread")
        await asyncio.to_thread(jobs.drain)

    asyncio.run(the_test())
    assert seen == ["here", "in a thread"]


class SendEmail(BaseModel):
    to: list[str]
    on: date = date(2026, 1, 1)


def test_an_actor_with_a_model_gets_an_instance(jobs: Jobs, actor: ActorDecorator, seen: list[Any]) -> None:
    @actor(SendEmail, category="jobs")
    def send_email(email: SendEmail) -> None:
        seen.append(email)

    send_email.send(to=["ada"])
    assert jobs.waiting[0].payload == SendEmail(to=["ada"])
    jobs.drain()
    assert seen == [SendEmail(to=["ada"])]


def test_a_stock_actor_runs(jobs: Jobs, callboard_broker: Broker, seen: list[Any]) -> None:
    @dramatiq.actor(broker=callboard_broker)
    def stock(a: int, *, b: str) -> None:
        seen.append((a, b))

    stock.send(1, b="x")
    assert (jobs.waiting[0].args, jobs.waiting[0].kwargs) == ((1,), {"b": "x"})
    jobs.drain()
    assert seen == [(1, "x")]


def test_pipelines_groups_and_results_use_what_was_lent(
    jobs: Jobs, actor: ActorDecorator, seen: list[Any]
) -> None:
    @actor(category="jobs", store_results=True)
    def double(n: int) -> dict[str, int]:
        return {"n": n * 2}

    @actor(category="jobs")
    def tell(text: str, n: int = 0) -> None:
        seen.append((text, n))

    pipeline: Any = double.message(21) | tell.partial(text="pipe")
    pipeline.run()
    make_group: Any = dramatiq.group
    group = make_group([double.message(1), double.message(2)])
    group.add_completion_callback(tell.message(text="group"))
    group.run()
    sent = double.send(4)
    jobs.drain()
    assert sorted(seen) == [("group", 0), ("pipe", 42)]
    assert sent.get_result() == {"n": 8}


def test_a_unique_job_is_queued_once_until_it_ends_or_its_key_does(jobs: Jobs, note: Any) -> None:
    first = note.using(unique="k").send("one")
    assert note.using(unique="k").send("two").message_id == first.message_id
    assert len(jobs.waiting) == 1
    jobs.drain()
    again = note.using(unique="k").send("three").message_id
    assert again != first.message_id
    jobs.clock.advance(timedelta(days=2))
    assert note.using(unique="k").send("four").message_id != again


def test_a_tick_sends_the_job_at_the_time_of_the_schedule(
    jobs: Jobs, actor: ActorDecorator, note: Any, seen: list[Any]
) -> None:
    @actor(category="jobs", periodic=cron("0 3 * * *", tz="Europe/Paris"))
    def clean_up(older_than_hours: int = 24) -> None:
        seen.append((older_than_hours, jobs.clock.now))

    jobs.tick(clean_up)
    jobs.tick(clean_up)
    jobs.drain()
    assert [hours for hours, _ in seen] == [24, 24]
    assert jobs.clock.now == cron("0 3 * * *", tz="Europe/Paris").floor(jobs.clock.now).astimezone(UTC)
    with pytest.raises(ValueError, match="'note' has no schedule"):
        jobs.tick(note)


# -- running twice ---------------------------------------------------------------------------------------


def test_a_job_that_runs_twice_has_the_same_id_and_number(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs", retries=0)
    def who_am_i(items: list[int]) -> tuple[str, int, list[int]]:
        items.append(0)
        return current_job().id, current_job().attempt, items

    waiting = note.send("left alone")
    first, second = jobs.run_twice(who_am_i.using(priority=Priority.LOW, delay=timedelta(hours=1)), [1])
    assert first == second
    assert first[1:] == (1, [1, 0])
    assert jobs.state(first[0]) is State.SUCCEEDED
    assert [job.id for job in jobs.waiting] == [waiting.message_id]


def test_a_job_that_is_not_safe_to_run_twice_is_found_out(
    jobs: Jobs, actor: ActorDecorator, seen: list[Any]
) -> None:
    @actor(category="jobs")
    def pay(invoice_id: int) -> None:
        if invoice_id in seen:
            raise NoInvoice("paid already")
        seen.append(invoice_id)

    with pytest.raises(NoInvoice, match="paid already"):
        jobs.run_twice(pay, 42)


def test_a_model_can_be_given_whole_or_by_its_fields(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(SendEmail, category="jobs")
    def count(email: SendEmail) -> int:
        return len(email.to)

    assert jobs.run_twice(count, SendEmail(to=["ada"])) == (1, 1)
    assert jobs.run_twice(count, to=["ada", "bob"]) == (2, 2)


def test_what_a_run_sends_is_sent_twice_when_it_runs_twice(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs")
    def lead() -> None:
        note.send("follow")

    jobs.run_twice(lead)
    assert len(jobs.waiting_for(note)) == 2


def test_a_job_that_does_not_run_did_not_run_twice(jobs: Jobs, note: Any) -> None:
    expired = note.using(expires=jobs.clock.now - timedelta(seconds=1))
    with pytest.raises(JobDied, match="was to succeed, and is expired"):
        jobs.run_twice(expired, "a")


# -- crashing --------------------------------------------------------------------------------------------


@pytest.fixture
def lead(jobs: Jobs, actor: ActorDecorator, note: Any, seen: list[Any]) -> Any:
    """An actor that does something, sends a job, and does something more."""

    @actor(category="jobs", on_success="note-success", retries=0)
    def lead() -> None:
        seen.append(f"begun {current_job().attempt}")
        note.send("followed")
        seen.append("ended")

    @actor(category="jobs")
    def note_success(message_data: dict[str, Any], result: None) -> None: ...

    return lead


@pytest.mark.parametrize(
    ("point", "before", "sent"),
    [
        ("before_start", [], []),
        ("after_send", ["begun 1"], ["note"]),
        ("after_run", ["begun 1", "ended"], ["note"]),
        ("before_ack", ["begun 1", "ended"], ["note", "note-success"]),
    ],
)
def test_a_killed_worker_leaves_behind_what_a_real_one_would(
    point: Any, before: list[str], sent: list[str], jobs: Jobs, lead: Any, seen: list[Any]
) -> None:
    job = lead.send()
    with jobs.crash_at(point, actor=lead) as crash:
        report = jobs.drain()
    assert crash.job_id == job.message_id
    assert seen == before
    assert report.crashed == 1
    assert [job.actor for job in jobs.waiting] == ["lead", *sent]
    assert jobs.waiting[0].attempt == 1
    assert jobs.state(job) is (State.QUEUED if point == "before_start" else State.RUNNING)
    jobs.drain()
    assert seen[len(before) :][:2] == ["begun 1", "ended"]
    assert jobs.state(job) is State.SUCCEEDED
    assert seen.count("followed") == 2 if "note" in sent else 1


def test_only_the_given_actor_and_the_given_time_count(
    jobs: Jobs, note: Any, lead: Any, seen: list[Any]
) -> None:
    for text in "abc":
        note.send(text)
    with jobs.crash_at("after_run", actor="note", nth=2) as crash:
        report = jobs.drain()
    assert crash.passed == 2
    assert (report.succeeded, report.crashed) == (1, 1)
    assert seen == ["a", "b"]
    jobs.drain()
    assert seen == ["a", "b", "b", "c"]


def test_a_crash_is_seen_by_no_middleware_and_counts_as_no_failure(
    jobs: Jobs, actor: ActorDecorator, callboard_broker: Broker
) -> None:
    told: list[str] = []

    class Tells(Middleware):
        def after_process_message(self, broker: Any, message: Any, **outcome: Any) -> None:
            told.append(f"after, redelivered: {message.delivery.redelivered}")

        def after_skip_message(self, broker: Any, message: Any) -> None:
            told.append("skip")

        def after_ack(self, broker: Any, message: Any) -> None:
            told.append("ack")

        after_nack = after_ack

    callboard_broker.add_middleware(Tells())

    @actor(category="jobs", retries=0)
    def work() -> None:
        step()

    sent = work.send()
    with jobs.crash_at(step):
        jobs.drain()
    assert told == []
    assert jobs.record(sent).events == ()
    assert jobs.drain().succeeded == 1
    assert told == ["after, redelivered: True", "ack"]


def step() -> str:
    """Something that jobs call."""
    return "step"


def test_a_dead_worker_sends_nothing_whatever_the_job_catches(
    jobs: Jobs, actor: ActorDecorator, note: Any, seen: list[Any]
) -> None:
    @actor(category="jobs")
    def stubborn() -> None:
        try:
            step()
        except Exception:
            seen.append("caught")
        except BaseException:
            pass  # as a bare `except:` does
        finally:
            try:
                note.send("from the grave")
            except BaseException:
                seen.append("not sent")

    stubborn.send()
    with jobs.crash_at(step):
        assert jobs.drain().crashed == 1
    assert seen == ["not sent"]
    assert [job.actor for job in jobs.waiting] == ["stubborn"]


def test_a_job_that_was_sent_before_the_crash_keeps_its_unique_key(
    jobs: Jobs, actor: ActorDecorator, note: Any
) -> None:
    @actor(category="jobs")
    def lead() -> None:
        note.using(unique="k").send("a")

    lead.send()
    with jobs.crash_at("after_send"):
        jobs.drain()
    jobs.drain(advance=False)
    assert note.using(unique="k").send("b") is not None
    assert len(jobs.waiting_for(note)) == 1


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, to: str) -> None:
        self.sent.append(to)

    async def send_async(self, to: str) -> None:
        self.sent.append(to)

    @staticmethod
    def check(to: str) -> None: ...

    @classmethod
    def make(cls) -> Mailer:
        return cls()


class FrozenMailer(Mailer):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "send":
            raise AttributeError("frozen")
        super().__setattr__(name, value)


mailer = Mailer()
frozen_mailer = FrozenMailer()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("call", "function"),
    [
        (lambda: mailer.send("ada"), mailer.send),
        (lambda: mailer.send("ada"), Mailer.send),
        (lambda: frozen_mailer.send("ada"), frozen_mailer.send),
        (lambda: mailer.check("ada"), Mailer.check),
        (lambda: Mailer.make(), Mailer.make),
        (lambda: step(), step),
        (lambda: os.getpid(), os.getpid),
    ],
    ids=[
        "method",
        "method of the class",
        "method of a frozen object",
        "static",
        "class",
        "function",
        "builtin",
    ],
)
def test_a_worker_dies_at_a_call(
    call: Any, function: Any, after: bool, jobs: Jobs, actor: ActorDecorator
) -> None:
    calls: list[str] = []

    @actor(category="jobs")
    def work() -> None:
        calls.append("before")
        call()
        calls.append("after")

    mailer.sent.clear()
    work.send()
    own = mailer.__dict__.copy(), Mailer.__dict__.copy(), step, os.getpid
    with jobs.crash_at(function, after=after) as crash:
        call()  # not in a run: it is only a call
        jobs.drain()
    assert calls == ["before"]
    assert crash.struck
    assert (mailer.__dict__, dict(Mailer.__dict__), step, os.getpid) == (own[0], dict(own[1]), *own[2:])
    jobs.drain()
    assert calls == ["before", "before", "after"]


def test_a_worker_dies_at_the_nth_call_before_or_after_it(jobs: Jobs, actor: ActorDecorator) -> None:
    @actor(category="jobs")
    async def send_all(to: list[str]) -> None:
        for each in to:
            await mailer.send_async(each)

    for after, got in ((False, ["a"]), (True, ["a", "b"])):
        mailer.sent.clear()
        send_all.send(["a", "b", "c"])
        with jobs.crash_at(mailer.send_async, nth=2, after=after):
            jobs.drain()
        assert mailer.sent == got
        jobs.drain()
        assert mailer.sent == [*got, "a", "b", "c"]


def test_a_crash_that_no_run_comes_to_fails_the_test(jobs: Jobs, note: Any) -> None:
    note.send("a")
    with (
        pytest.raises(NeverCrashed, match=r"killed at a call of step, and no run came to it"),
        jobs.crash_at(step),
    ):
        jobs.drain()
    with (
        pytest.raises(NeverCrashed, match="it was passed 1 times, not 2"),
        jobs.crash_at("after_run", nth=2),
    ):
        note.send("b")
        jobs.drain()


def test_a_crash_that_makes_no_sense_is_refused(jobs: Jobs, note: Any) -> None:
    def local() -> None: ...

    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("in_the_middle", {}, "name one of before_start, after_send, after_run, before_ack"),
        ("before_ack", {"after": True}, "after= is for functions"),
        ("before_ack", {"nth": 0}, "counts from 1"),
        (local, {}, "named by no module"),
    ]
    for point, options, message in wrong:
        with pytest.raises(ValueError, match=message), jobs.crash_at(point, **options):
            pass
    with pytest.raises(TypeError, match="is an actor"), jobs.crash_at(note):
        pass
    with (
        pytest.raises(ValueError, match="at another point already"),
        jobs.crash_at("before_ack"),
        jobs.crash_at("after_run"),
    ):
        pass


# -- like a real worker ----------------------------------------------------------------------------------


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
    broker = _new_broker()
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

    broker = _new_broker()
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


# -- giving back -----------------------------------------------------------------------------------------


def test_a_broker_gets_everything_back() -> None:
    broker = _new_broker()
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


# -- as people use it --------------------------------------------------------------------------------------

APP_TEST = """
    import pytest
    from actors.billing import send_invoice, sent

    @pytest.mark.parametrize("n", range(4))
    def test_an_invoice_is_sent(jobs, n):
        sent.clear()
        send_invoice.send(n)
        assert [job.kwargs for job in jobs.waiting] == [{"invoice_id": n}]
        jobs.drain()
        assert sent == [n]

    def test_a_pipeline_runs(jobs):
        sent.clear()
        (send_invoice.message(1) | send_invoice.message(2)).run()
        jobs.drain()
        assert sent == [1, 2]

    async def _sends():
        await send_invoice.send_async(9)

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_async(jobs):
        await _sends()
        assert jobs.drain().succeeded == 1
"""


@pytest.fixture
def app(pytester: pytest.Pytester) -> Iterator[pytest.Pytester]:
    """An application with the project's own broker.py, whose queue would be a file."""
    pytester.makepyfile(
        **{
            "broker": (ROOT / "broker.py").read_text(),
            "actors/__init__": "",
            "actors/billing": """
                from broker import actor

                sent = []

                @actor()
                def send_invoice(invoice_id: int) -> None:
                    if invoice_id < 0:
                        raise ValueError(f"no invoice {invoice_id}")
                    sent.append(invoice_id)
            """,
        }
    )
    yield pytester
    assert not (pytester.path / "var").exists()


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_an_application_needs_no_configuration(app: pytest.Pytester, options: list[str]) -> None:
    app.makepyfile(**{"tests/test_billing": APP_TEST})
    result = app.runpytest_subprocess("-W", "error", *options)
    result.assert_outcomes(passed=6)


def test_a_failure_shows_the_jobs_own_lines_and_none_of_the_machinery(app: pytest.Pytester) -> None:
    app.makepyfile(
        test_it="""
        from actors.billing import send_invoice

        def test_it(jobs):
            send_invoice.send(-1)
            jobs.drain(max_jobs=10)
        """
    )
    result = app.runpytest_subprocess("--show-capture=no")
    result.stdout.fnmatch_lines(
        [
            ">       jobs.drain(max_jobs=10)",
            "test_it.py:5: ",
            '>           raise ValueError(f"no invoice {invoice_id}")',
            "E           ValueError: no invoice -1",
            "E           raised by 'send-invoice', attempt 5 of job *: dead",
            "actors/billing.py:8: ValueError",
        ]
    )
    assert "callboard/" not in result.stdout.str()


def test_without_the_fixture_nothing_heavy_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert "callboard.testing" in sys.modules
            assert not {"dramatiq", "pydantic", "structlog", "msgspec", "callboard.brokers"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_a_broker_may_live_in_another_module(pytester: pytest.Pytester) -> None:
    wiring = (ROOT / "broker.py").read_text()
    pytester.makeini("[pytest]\ncallboard_broker = shop.wiring")
    pytester.makepyfile(
        **{
            "shop/__init__": "",
            "shop/wiring": wiring,
            "tests/test_it": """
                from shop.wiring import actor, broker

                def test_it(jobs):
                    assert jobs.broker is broker
            """,
        }
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_module_without_a_broker_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncallboard_broker = wiring")
    pytester.makepyfile(wiring="broker = None", test_it="def test_it(jobs): ...")
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*the module 'wiring' has no `broker` of Callboard*"])
