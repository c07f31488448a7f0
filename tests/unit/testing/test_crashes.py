"""A worker dies where a test wants it to."""

from __future__ import annotations

import os
from typing import Any

import pytest
from dramatiq import Middleware

from callboard import State, current_job
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.testing import Jobs, NeverCrashed


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
