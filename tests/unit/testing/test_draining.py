"""Drained jobs run as a worker runs them, on a clock that stands, and fail the test as they fail."""

from __future__ import annotations

import asyncio
import traceback
from datetime import UTC, timedelta
from typing import Any

import dramatiq
import pytest

from callboard import Cancelled, Permanent, RetryPolicy, Snooze, State, cron, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.testing import JobDied, Jobs, NeverDrained
from tests.unit.testing.conftest import NoInvoice, SendEmail


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
