"""What becomes of jobs when RabbitMQ takes their claims back, or doesn't take what they come to."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import pytest
from structlog.testing import capture_logs

from callboard import RetryPolicy, State, current_job, dead_letter
from callboard.brokers.driver import IntakeOptions, Outgoing, StoredMessage, Verdict
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.brokers.rabbitmq.intake import RabbitmqIntake
from callboard.brokers.rabbitmq.stream import Stream
from callboard.envelope import AttemptError, Headers, encode_headers
from callboard.queues import dead_queue
from callboard.servers import PrivateRabbitmq
from callboard.worker.worker import Worker
from tests.conformance.rig import PATIENCE, OwnCrew, Rig, dismantle, make_rig
from tests.patience import until

pytestmark = pytest.mark.usefixtures("plain_tracebacks")

MakeRig = Callable[[str], Rig]


@pytest.fixture
def make() -> Iterator[MakeRig]:
    """Makes rigs for Callboard's own worker on a RabbitMQ."""
    made: list[Rig] = []

    def make_one(url: str) -> Rig:
        made.append(make_rig("rabbitmq", "callboard", partial(RabbitmqDriver, url)))
        return made[-1]

    yield make_one
    for rig in made:
        dismantle(rig)


def start(rig: Rig, threads: int) -> Worker:
    crew = rig.start(threads)
    assert isinstance(crew, OwnCrew)
    return crew._worker


def close_connections(node: PrivateRabbitmq, worker: Worker) -> None:
    """Close all, when the worker consumes; returns when it is connected again."""
    intake = worker._intake
    assert isinstance(intake, RabbitmqIntake)
    link = intake.link
    until(lambda: any(lane.hold is not None for lane in intake._lanes.values()))
    before = link.opened
    node.close_all_connections()
    until(lambda: link.opened > before)


class Held:
    """A job that runs until it is let go, and how many of it ran at once."""

    def __init__(self, rig: Rig) -> None:
        self.let_go = threading.Event()
        self.inside = self.most = 0
        self.passed: list[str] = []
        self._lock = threading.Lock()
        self.actor = rig.actor(name="held")(self._hold)

    def _hold(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.let_go.wait(PATIENCE)
        with self._lock:
            self.inside -= 1
        self.passed.append(current_job().id)


def test_fifteen_innocents_outlive_sixty_closed_connections(
    make: MakeRig, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    """Each closing counts as a delivery of each: with a limit of 20, as RabbitMQ 4 has it by default, all would be
    dead. None was started when its claim went, so none runs twice."""
    rig = make(amqp_url)
    held = Held(rig)
    runs: Counter[str] = Counter()

    @rig.actor()
    def innocent() -> None:
        runs[current_job().id] += 1

    blocker = held.actor.send()
    worker = start(rig, threads=1)
    until(lambda: held.inside)
    innocents = {innocent.send().message_id for _ in range(15)}
    for _ in range(60):
        close_connections(rabbitmq, worker)
    held.let_go.set()
    until(lambda: runs.keys() == innocents)
    until(lambda: len(held.passed) + rig.witness.skipped.count(blocker.message_id) >= 2)
    assert set(runs.values()) == {1}
    assert held.passed == [blocker.message_id]
    assert rig.ready(dead_queue(rig.category)) == 0


def test_a_job_longer_than_the_consumer_timeout_runs_once(
    make: MakeRig, own_rabbitmq: PrivateRabbitmq
) -> None:
    """RabbitMQ closes its channel and delivers it again, and again that, to a worker with threads to spare."""
    own_rabbitmq.evaluate("application:set_env(rabbit, consumer_timeout, 1000)")
    own_rabbitmq.evaluate("application:set_env(rabbit, channel_tick_interval, 500)")
    rig = make(own_rabbitmq.url)
    held = Held(rig)
    sent = held.actor.send()
    worker = start(rig, threads=3)
    until(lambda: held.inside)
    (running,) = worker.running
    until(lambda: not running.intake.holds(running.delivery))
    until(lambda: len(worker._redeliveries) == 1)
    copies = [message for _, message in worker._redeliveries._waiting]
    until(lambda: not any(copy.intake.holds(copy.delivery) for copy in copies))
    assert held.most == 1
    own_rabbitmq.evaluate("application:set_env(rabbit, consumer_timeout, 60000)")
    held.let_go.set()
    until(lambda: sent.message_id in rig.witness.skipped)
    assert rig.reaches(sent, State.SUCCEEDED).attempt == 1
    assert (held.passed, held.most) == ([sent.message_id], 1)


def test_an_actor_that_may_run_longer_than_the_consumer_timeout_is_named_at_the_workers_start(
    make: MakeRig, amqp_url: str
) -> None:
    rig = make(amqp_url)
    rig.actor(name="train-model", time_limit=timedelta(hours=2))(lambda: None)
    with capture_logs() as lines:
        start(rig, threads=1)
        until(lambda: any("consumer_timeout" in line["event"] for line in lines))
    (line,) = [line for line in lines if "consumer_timeout" in line["event"]]
    assert "'train-model' may run longer than RabbitMQ's consumer_timeout" in line["event"]
    assert (line["log_level"], line["time_limit"]) == ("warning", 7200.0)


def test_where_the_server_takes_it_a_consumer_asks_for_a_day(
    make: MakeRig, amqp_url: str, rabbitmq: PrivateRabbitmq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node here is too old for it, and keeps it unread: so it can be told it is 3.12."""
    monkeypatch.setattr(Stream, "version", (3, 12, 0))
    rig = make(amqp_url)
    start(rig, threads=1)
    listed = ("list_consumers", "-p", amqp_url.rpartition("/")[2], "--quiet", "arguments")
    until(lambda: "x-consumer-timeout" in rabbitmq.ctl(*listed))
    assert "86400000" in rabbitmq.ctl(*listed)


def test_a_dead_letter_that_finds_its_queue_full_waits_for_room(
    make: MakeRig, own_rabbitmq: PrivateRabbitmq
) -> None:
    rig = make(own_rabbitmq.url)

    @rig.actor(retries=0)
    def fails() -> None:
        raise OSError("no luck")

    first = fails.send()
    start(rig, threads=8)
    rig.letters(1)
    own_rabbitmq.ctl(
        *("set_policy", "full", r"\.dead$", json.dumps({"max-length": 1, "overflow": "reject-publish"})),
        *("--apply-to", "queues"),
    )
    # The limit lets one or two more through than it says.
    sent = [fails.send() for _ in range(5)]
    until(lambda: all(rig.starts(job) for job in sent))
    states = [rig.record(job) for job in sent]
    assert any(record is None or record.state is not State.DEAD for record in states)
    found: list[str] = []

    def discard(stored: StoredMessage) -> Verdict:
        found.append(dead_letter.decode(stored.body).job_id)
        return Verdict.DISCARD

    def made_room_for_all() -> bool:
        rig.broker.driver.walk(dead_queue(rig.category), discard)
        return len(found) >= 6

    until(made_room_for_all)
    assert sorted(found) == sorted([first.message_id, *(one.message_id for one in sent)])
    assert all(len(rig.starts(job)) == 1 for job in sent)


def test_a_retry_that_cant_be_published_is_tried_again_when_rabbitmq_is_back(
    make: MakeRig, own_rabbitmq: PrivateRabbitmq
) -> None:
    """RabbitMQ is killed while the job runs, and is gone when it fails. Its message comes again, since it wasn't
    acked; the run that failed counts or doesn't, as its retry got there or not."""
    rig = make(own_rabbitmq.url)
    failing = threading.Event()
    held = Held(rig)

    @rig.actor(retries=RetryPolicy(attempts=3, base=timedelta(seconds=0.1), jitter=False))
    def fails_once() -> None:
        if not failing.is_set():
            held.actor.fn()
            failing.set()
            raise OSError("no luck")

    sent = fails_once.send()
    start(rig, threads=1)
    until(lambda: held.inside)
    own_rabbitmq.write_down_queues()
    own_rabbitmq.kill()
    held.let_go.set()
    until(failing.is_set)
    own_rabbitmq.start()
    record = rig.reaches(sent, State.SUCCEEDED)
    assert record.attempt <= 2
    assert len(rig.starts(sent)) == 2
    assert rig.ready(dead_queue(rig.category)) == 0


@pytest.mark.parametrize("retry_after", [0.5, 4.0], ids=["the retry first", "the old message first"])
def test_a_crash_between_a_retrys_publish_and_its_ack_repeats_an_attempt_once_at_most(
    make: MakeRig, amqp_url: str, retry_after: float
) -> None:
    """Both messages are there. The old one goes without a run if the retry has been further by then; otherwise its
    run makes a second retry. One job has died, however many letters say so."""
    rig = make(amqp_url)

    @rig.actor(retries=RetryPolicy(attempts=3, base=timedelta(seconds=0.1), jitter=False))
    def fails() -> None:
        raise OSError("no luck")

    sent = fails.send()
    driver = rig.open_driver()
    rig.stack.callback(driver.close)
    crashed = driver.open_intake(IntakeOptions(rig.queues(), 1, "it crashes"))
    (delivery,) = crashed.fetch(1, PATIENCE)
    failed = AttemptError(1, time.time(), "OSError", "no luck")
    due = time.time() + retry_after
    headers = Headers(hop=1, attempt=1, state="retrying", ready_at=due, errors=[failed])
    retry = Outgoing(delivery.queue, delivery.body, sent.message_id, encode_headers(headers), due)
    driver.put([retry], deadline=PATIENCE)
    crashed.close()
    start(rig, threads=1)
    until(lambda: rig.ready(dead_queue(rig.category)) >= 1)
    # Each of the two messages comes to an end.
    until(lambda: rig.ready(dead_queue(rig.category)) + len(rig.witness.skipped) >= 2)
    attempts = Counter(start.attempt for start in rig.starts(sent))
    assert set(attempts) - {1} == {2, 3}
    assert max(attempts.values()) <= 2
    letters = [dead_letter.decode(stored.body) for stored in rig.broker.driver.peek(dead_queue(rig.category))]
    assert {(letter.job_id, letter.death) for letter in letters} == {(sent.message_id, 1)}
