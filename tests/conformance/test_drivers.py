"""What every driver does, whatever it keeps messages in. A driver joins by one line in `SUBJECTS`."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from multiprocessing.connection import Connection
from typing import Any

import pytest

from callboard.brokers.driver import (
    Delivery,
    Driver,
    Intake,
    IntakeOptions,
    Outgoing,
    PutError,
    StoredMessage,
    Verdict,
)
from callboard.servers import PrivateRabbitmq, PrivateRedis
from tests.deliveries import message, numbers, take
from tests.patience import until

PATIENCE = 30.0  # seconds that an event may take on a slow machine; none should need them
LULL = 0.3  # seconds in which nothing is expected


@dataclass
class Subject:
    """A driver under test, and what it can't do."""

    #: Opens one more driver on the same messages, as another process would. It can be pickled where
    #: `across_processes` holds.
    open: Callable[[], Driver]
    across_processes: bool = True
    #: It picks freely among queues: strictly by priority, and every eighth by age.
    chooses: bool = True
    #: It can tell a message that was given back unstarted from one whose worker died.
    knows_unstarted: bool = True
    #: `counts` knows claimed and delayed ones.
    counts_all: bool = True
    #: `purge` reaches messages that aren't due yet.
    purges_delayed: bool = True
    #: While its context is open, a put or move of the driver is refused.
    refusing: Callable[[Driver], AbstractContextManager[None]] | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def driver(self) -> Driver:
        driver = self.open()
        self.stack.callback(driver.close)
        return driver

    def intake(
        self, driver: Driver, *queues: str, budget: int = 1000, paused: frozenset[str] = frozenset()
    ) -> Intake:
        options = IntakeOptions(
            queues=queues, budget=budget, worker=f"w{next(_numbers)}-{os.getpid()}", paused=paused
        )
        intake = driver.open_intake(options)
        self.stack.callback(intake.close)
        return intake


_numbers = count(1)


def _file(request: pytest.FixtureRequest) -> Subject:
    from callboard.brokers.file import FileDriver, intake

    folder = request.getfixturevalue("tmp_path") / "var"

    @contextmanager
    def frozen_writer(_: Driver) -> Iterator[None]:
        with (folder / "queue.lock").open() as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            patch.setattr(intake, "MOVE_DEADLINE", 0.2)
            yield

    return Subject(partial(FileDriver, folder), refusing=frozen_writer)


def _stub(request: pytest.FixtureRequest) -> Subject:
    from callboard.brokers.stub import StubDriver

    driver = StubDriver()

    @contextmanager
    def failing(_: Driver) -> Iterator[None]:
        driver.fail_puts = "the test says so"
        yield
        driver.fail_puts = None

    return Subject(lambda: driver, across_processes=False, refusing=failing)


def _rabbitmq(request: pytest.FixtureRequest) -> Subject:
    from callboard.brokers.rabbitmq import RabbitmqDriver

    return Subject(
        partial(RabbitmqDriver, request.getfixturevalue("amqp_url")),
        knows_unstarted=False,
        counts_all=False,
        purges_delayed=False,
        refusing=lambda driver: _memory_alarm(request.getfixturevalue("rabbitmq"), driver),
    )


def _redis(request: pytest.FixtureRequest, kind: str = "redis") -> Subject:
    from callboard.brokers.redis import RedisDriver, intake

    server: PrivateRedis = request.getfixturevalue(f"{kind}_server")
    server.empty()

    @contextmanager
    def read_only(_: Driver) -> Iterator[None]:
        with server.read_only(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(intake, "MOVE_DEADLINE", 0.2)
            yield

    return Subject(partial(RedisDriver, server.url, lease=1.0), refusing=read_only)


@contextmanager
def _memory_alarm(node: PrivateRabbitmq, driver: Driver) -> Iterator[None]:
    def believed() -> bool:
        """The node takes a moment."""
        try:
            driver.put([message(0, "probe.low")], deadline=0.2)
        except PutError:
            return True
        return False

    node.set_memory_alarm(True)
    try:
        until(believed)
        yield
    finally:
        node.set_memory_alarm(False)


SUBJECTS: dict[str, Callable[[pytest.FixtureRequest], Subject]] = {
    "file": _file,
    "rabbitmq": _rabbitmq,
    "redis": _redis,
    "stub": _stub,
    "valkey": partial(_redis, kind="valkey"),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    subject = SUBJECTS[request.param](request)
    with subject.stack:
        yield subject


@pytest.fixture
def driver(subject: Subject) -> Driver:
    return subject.driver()


def put(driver: Driver, *messages: Outgoing) -> None:
    driver.put(messages, deadline=PATIENCE)


def assert_nothing_comes(intake: Intake) -> None:
    end = time.monotonic() + LULL
    while (left := end - time.monotonic()) > 0:
        assert numbers(intake.fetch(100, left)) == []


def finish(intake: Intake, deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        intake.ack(delivery)
    assert intake.flush(PATIENCE)


# --- put and fetch


def test_a_message_comes_out_as_it_went_in(subject: Subject, driver: Driver) -> None:
    body = bytes(range(256))
    put(driver, Outgoing("mail.high", body, "job-1", b"\x00headers\xff"))
    (delivery,) = take(subject.intake(driver, "mail.high"), 1)
    assert (delivery.queue, delivery.body, delivery.headers) == ("mail.high", body, b"\x00headers\xff")
    assert not delivery.redelivered


def test_empty_headers_stay_empty(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, headers=b""))
    (delivery,) = take(subject.intake(driver, "mail.high"), 1)
    assert delivery.headers == b""


def test_messages_come_in_the_order_in_which_they_were_put(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(5)))
    for n in range(5, 10):
        put(driver, message(n))
    put(driver, *(message(n) for n in range(10, 300)))
    assert numbers(take(subject.intake(driver, "mail.high"), 300, limit=7)) == list(range(300))


def test_what_one_driver_puts_another_fetches(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    assert numbers(take(subject.intake(subject.driver(), "mail.high"), 1)) == [1]


def test_a_put_of_nothing_does_nothing(driver: Driver) -> None:
    put(driver)


def test_one_put_may_go_to_many_queues(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, f"c{n}.low") for n in range(12)))
    for n in range(12):
        assert numbers(take(subject.intake(driver, f"c{n}.low"), 1)) == [n]


def test_an_intake_gets_only_its_own_queues(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, "mail.high"), message(2, "mail.low"), message(3, "mailx.high"))
    intake = subject.intake(driver, "mail.high")
    assert numbers(take(intake, 1)) == [1]
    assert_nothing_comes(intake)


def test_a_large_body_survives(subject: Subject, driver: Driver) -> None:
    body = os.urandom(1_500_000)
    put(driver, Outgoing("mail.high", body, "large"), message(2))
    large, small = take(subject.intake(driver, "mail.high"), 2)
    assert large.body == body
    assert small.body == b"2"


def test_an_empty_body_survives(subject: Subject, driver: Driver) -> None:
    put(driver, Outgoing("mail.high", b"", "empty"))
    assert take(subject.intake(driver, "mail.high"), 1)[0].body == b""


def test_a_fetch_of_nothing_waits_out_its_timeout(subject: Subject, driver: Driver) -> None:
    intake = subject.intake(driver, "mail.high")
    intake.fetch(1, 0.0)  # whatever opening costs is not part of the wait
    start = time.monotonic()
    assert intake.fetch(10, 0.3) == []
    assert time.monotonic() - start >= 0.29


def test_a_waiting_fetch_gets_what_is_put_meanwhile(subject: Subject, driver: Driver) -> None:
    intake = subject.intake(driver, "mail.high")
    intake.fetch(1, 0.0)
    sender = threading.Timer(0.2, put, [subject.driver(), message(1)])
    sender.start()
    assert numbers(take(intake, 1)) == [1]
    sender.join()


def test_wake_ends_a_waiting_fetch(subject: Subject, driver: Driver) -> None:
    intake = subject.intake(driver, "mail.high")
    intake.fetch(1, 0.0)
    returned = threading.Event()

    def wait() -> None:
        assert intake.fetch(10, 10 * PATIENCE) == []
        returned.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    end = time.monotonic() + PATIENCE
    while not returned.wait(0.05) and time.monotonic() < end:
        intake.wake()  # again and again, because a wake that nobody waits for may be forgotten
    assert returned.is_set()
    waiter.join()


def test_fetch_never_returns_more_than_its_limit(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(20)))
    intake = subject.intake(driver, "mail.high")
    sizes = [len(intake.fetch(3, 1.0)) for _ in range(10)]
    assert max(sizes) <= 3
    assert sum(sizes) <= 20


def test_an_intake_holds_no_more_than_its_budget(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(10)))
    intake = subject.intake(driver, "mail.high", budget=4)
    first = take(intake, 4)
    assert_nothing_comes(intake)
    finish(intake, first[:2])
    second = take(intake, 2)
    assert_nothing_comes(intake)
    assert sorted(numbers(first + second)) == [0, 1, 2, 3, 4, 5]


def test_what_is_beyond_one_budget_goes_to_others(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(10)))
    first, second = (subject.intake(subject.driver(), "mail.high", budget=5) for _ in range(2))
    found = take(first, 5) + take(second, 5)
    assert sorted(numbers(found)) == list(range(10))


# --- letting go


def test_an_acked_message_never_comes_again(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(3)))
    intake = subject.intake(driver, "mail.high")
    finish(intake, take(intake, 3))
    intake.close()
    assert_nothing_comes(subject.intake(subject.driver(), "mail.high"))


def test_acks_given_before_close_are_applied(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(50)))
    intake = subject.intake(driver, "mail.high")
    for delivery in take(intake, 50):
        intake.ack(delivery)
    intake.close()
    assert_nothing_comes(subject.intake(subject.driver(), "mail.high"))


def test_acks_are_applied_without_another_fetch(subject: Subject, driver: Driver) -> None:
    put(driver, message(1), message(2))
    intake = subject.intake(driver, "mail.high")
    for delivery in take(intake, 2):
        intake.ack(delivery)
    if subject.counts_all:
        until(lambda: subject.driver().counts(["mail.high"])["mail.high"].claimed == 0)
    assert intake.flush(PATIENCE)


def test_messages_can_be_acked_from_many_threads(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(200)))
    intake = subject.intake(driver, "mail.high")
    held = take(intake, 200)
    threads = [
        threading.Thread(target=lambda part: [intake.ack(d) for d in part], args=[held[k::8]])
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert intake.flush(PATIENCE)
    intake.close()
    assert_nothing_comes(subject.intake(driver, "mail.high"))


def test_what_is_not_acked_comes_back_when_the_intake_closes(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(4)))
    intake = subject.intake(driver, "mail.high")
    held = take(intake, 4)
    finish(intake, held[1:2])
    intake.close()
    again = take(subject.intake(subject.driver(), "mail.high"), 3)
    assert sorted(numbers(again)) == [0, 2, 3]


def test_closing_twice_is_harmless(subject: Subject, driver: Driver) -> None:
    intake = subject.intake(driver, "mail.high")
    intake.close()
    intake.close()
    driver.close()
    driver.close()


def test_given_back_messages_are_ready_for_others_at_once(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(6)))
    intake = subject.intake(driver, "mail.high", budget=6)
    held = take(intake, 6)
    intake.pause(frozenset({"mail.high"}))
    intake.give_back(held[2:5])
    again = take(subject.intake(subject.driver(), "mail.high"), 3)
    assert sorted(numbers(again)) == [2, 3, 4]
    if subject.knows_unstarted:
        assert numbers(again) == [2, 3, 4]
        assert not any(delivery.redelivered for delivery in again)
    assert [intake.holds(delivery) for delivery in held] == [True, True, False, False, False, True]


def test_given_back_messages_keep_their_place(subject: Subject, driver: Driver) -> None:
    if not subject.knows_unstarted:
        pytest.skip("this driver puts them where it likes")
    put(driver, *(message(n) for n in range(6)))
    intake = subject.intake(driver, "mail.high")
    intake.give_back(take(intake, 3))
    assert numbers(take(intake, 6)) == [0, 1, 2, 3, 4, 5]


def test_given_back_messages_wake_a_waiting_worker(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    first = subject.intake(driver, "mail.high")
    held = take(first, 1)
    first.pause(frozenset({"mail.high"}))
    second = subject.intake(subject.driver(), "mail.high")
    giver = threading.Timer(0.2, first.give_back, [held])
    giver.start()
    assert numbers(take(second, 1)) == [1]
    giver.join()


def test_two_intakes_never_get_the_same_message(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(400)))
    shared = subject.driver()
    intakes = [
        subject.intake(subject.driver(), "mail.high"),
        *(subject.intake(shared, "mail.high") for _ in range(3)),
    ]
    found: list[int] = []
    mutex = threading.Lock()
    end = time.monotonic() + PATIENCE

    def work(intake: Intake) -> None:
        while len(found) < 400 and time.monotonic() < end:
            deliveries = intake.fetch(9, 0.05)
            with mutex:
                found.extend(numbers(deliveries))
            for delivery in deliveries:
                intake.ack(delivery)

    threads = [threading.Thread(target=work, args=[intake]) for intake in intakes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(400))


def test_a_claim_is_held_until_it_is_let_go(subject: Subject, driver: Driver) -> None:
    put(driver, message(1), message(2), message(3))
    intake = subject.intake(driver, "mail.high")
    first, second, third = take(intake, 3)
    assert intake.holds(first)
    finish(intake, [first])
    intake.move(second, message(9, "mail.low"))
    assert [intake.holds(d) for d in (first, second, third)] == [False, False, True]
    intake.close()
    assert not intake.holds(third)


def test_the_ack_of_a_lost_claim_harms_nobody(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    first = subject.intake(driver, "mail.high")
    (stale,) = take(first, 1)
    first.close()
    second = subject.intake(driver, "mail.high")
    (held,) = take(second, 1)
    first.ack(stale)
    first.flush(PATIENCE)
    assert second.holds(held)
    second.close()
    assert numbers(take(subject.intake(driver, "mail.high"), 1)) == [1]


def test_acking_twice_harms_nobody(subject: Subject, driver: Driver) -> None:
    put(driver, message(1), message(2))
    intake = subject.intake(driver, "mail.high")
    first, _second = take(intake, 2)
    finish(intake, [first, first])
    intake.give_back([first])
    intake.close()
    assert numbers(take(subject.intake(driver, "mail.high"), 1)) == [2]


# --- move


def test_a_move_puts_one_message_and_acks_another(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    intake = subject.intake(driver, "mail.high")
    (delivery,) = take(intake, 1)
    intake.move(delivery, Outgoing("mail.dead", b"77", "job-1", b"why"))
    assert intake.flush(PATIENCE)
    intake.close()
    other = subject.intake(driver, "mail.high", "mail.dead")
    (moved,) = take(other, 1)
    assert (moved.queue, moved.body, moved.headers) == ("mail.dead", b"77", b"why")
    assert_nothing_comes(other)


def test_a_move_may_be_into_the_future(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    intake = subject.intake(driver, "mail.high")
    (delivery,) = take(intake, 1)
    outgoing = message(2, delay=0.8)
    intake.move(delivery, outgoing)
    (again,) = take(intake, 1)
    assert outgoing.due is not None
    assert time.time() >= outgoing.due
    assert numbers([again]) == [2]


def test_many_threads_may_move_at_once(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(40)))
    intake = subject.intake(driver, "mail.high")
    held = take(intake, 40)

    def move(part: list[Delivery]) -> None:
        for delivery in part:
            intake.move(delivery, Outgoing("mail.low", delivery.body, "moved"))

    threads = [threading.Thread(target=move, args=[held[k::8]]) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert intake.flush(PATIENCE)
    intake.close()
    other = subject.intake(driver, "mail.high", "mail.low")
    moved = take(other, 40)
    assert sorted(numbers(moved)) == list(range(40))
    assert {delivery.queue for delivery in moved} == {"mail.low"}


def test_a_move_that_fails_keeps_the_claim(subject: Subject, driver: Driver) -> None:
    if subject.refusing is None:
        pytest.skip("nobody has said how to make this driver refuse")
    put(driver, message(1))
    intake = subject.intake(driver, "mail.high")
    (delivery,) = take(intake, 1)
    outgoing = message(2, "mail.low")
    with subject.refusing(driver), pytest.raises(PutError) as caught:
        intake.move(delivery, outgoing)
    assert caught.value.not_queued + caught.value.unknown == [outgoing]
    assert intake.holds(delivery)
    intake.close()
    assert numbers(take(subject.intake(driver, "mail.high"), 1)) == [1]


# --- delays


def test_a_delayed_message_is_never_early(subject: Subject, driver: Driver) -> None:
    delayed = [message(n, delay=0.3 + n * 0.1) for n in range(10)]
    put(driver, *delayed)
    intake = subject.intake(driver, "mail.high")
    seen = 0
    end = time.monotonic() + PATIENCE
    while seen < 10 and time.monotonic() < end:
        deliveries = intake.fetch(10, 1.0)
        now = time.time()
        for number in numbers(deliveries):
            due = delayed[number].due
            assert due is not None
            assert now >= due
        seen += len(deliveries)
    assert seen == 10


def test_delayed_messages_come_in_the_order_of_their_due_times(subject: Subject, driver: Driver) -> None:
    delays = [1.6, 0.4, 1.0, 2.2]
    put(driver, *(message(n, delay=delay) for n, delay in enumerate(delays)))
    assert numbers(take(subject.intake(driver, "mail.high"), 4)) == [1, 2, 0, 3]


def test_what_is_due_later_holds_nothing_back(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, delay=86400.0) for n in range(200)))
    put(driver, message(1000, delay=0.5), message(1001))
    intake = subject.intake(driver, "mail.high", budget=5)
    assert numbers(take(intake, 2)) == [1001, 1000]
    assert_nothing_comes(intake)


def test_what_is_already_due_comes_at_once(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, delay=-5.0))
    assert numbers(take(subject.intake(driver, "mail.high"), 1)) == [1]


def test_a_delayed_message_outlives_its_driver(subject: Subject, driver: Driver) -> None:
    other = subject.driver()
    other.put([message(1, delay=0.5)], deadline=PATIENCE)
    if subject.across_processes:
        other.close()
    assert numbers(take(subject.intake(driver, "mail.high"), 1)) == [1]


# --- priority


def test_urgent_queues_come_first(subject: Subject, driver: Driver) -> None:
    if not subject.chooses:
        pytest.skip("this driver takes what it is sent")
    put(
        driver,
        message(1, "mail.low"),
        message(2, "mail.medium"),
        message(3, "mail.high"),
        message(4, "mail.critical"),
    )
    intake = subject.intake(driver, "mail.low", "mail.medium", "mail.high", "mail.critical")
    assert numbers(take(intake, 4, limit=4)) == [4, 3, 2, 1]


def test_queues_of_one_priority_share_by_age(subject: Subject, driver: Driver) -> None:
    if not subject.chooses:
        pytest.skip("this driver takes what it is sent")
    for n in range(12):
        put(driver, message(n, f"c{n % 3}.medium"))
    intake = subject.intake(driver, "c0.medium", "c1.medium", "c2.medium")
    assert numbers(take(intake, 12, limit=4)) == list(range(12))


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_every_eighth_message_is_the_oldest(subject: Subject, driver: Driver, limit: int) -> None:
    if not subject.chooses:
        pytest.skip("this driver takes what it is sent")
    put(driver, *(message(n, "mail.low") for n in range(100, 105)))
    put(driver, *(message(n, "mail.high") for n in range(50)))
    intake = subject.intake(driver, "mail.low", "mail.high")
    got = numbers(take(intake, 40, limit=limit))
    for start in range(0, 40, 8):
        eight = got[start : start + 8]
        assert len([number for number in eight if number >= 100]) == 1, got
    assert [number for number in got if number >= 100] == [100, 101, 102, 103, 104]


# --- pause


def test_nothing_is_claimed_from_a_paused_queue(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, "mail.high"), message(2, "mail.low"))
    intake = subject.intake(driver, "mail.high", "mail.low", paused=frozenset({"mail.high"}))
    assert numbers(take(intake, 1)) == [2]
    assert_nothing_comes(intake)
    intake.pause(frozenset({"mail.low"}))
    put(driver, message(3, "mail.low"))
    assert numbers(take(intake, 1)) == [1]
    assert_nothing_comes(intake)
    intake.pause(frozenset())
    assert numbers(take(intake, 1)) == [3]


def test_a_waiting_fetch_notices_that_a_pause_ends(subject: Subject, driver: Driver) -> None:
    put(driver, message(1))
    intake = subject.intake(driver, "mail.high", paused=frozenset({"mail.high"}))
    assert_nothing_comes(intake)
    timer = threading.Timer(0.2, intake.pause, [frozenset()])
    timer.start()
    assert numbers(take(intake, 1)) == [1]
    timer.join()


# --- asking and changing from outside


def test_queues_lists_what_is_declared_and_what_exists(subject: Subject, driver: Driver) -> None:
    driver.declare("mail.high")
    driver.declare("mail.dead")
    put(driver, message(1, "billing.low"))
    assert {"mail.high", "mail.dead", "billing.low"} <= set(driver.queues())


def test_a_queue_that_does_not_exist_counts_as_empty(driver: Driver) -> None:
    counts = driver.counts(["nowhere.low"])["nowhere.low"]
    assert (counts.ready, counts.consumers) == (0, 0)
    assert counts.claimed in (0, None)
    assert counts.delayed in (0, None)


def test_counts_tell_ready_claimed_and_delayed(subject: Subject, driver: Driver) -> None:
    put(
        driver,
        *(message(n) for n in range(5)),
        *(message(n, delay=3600.0) for n in range(3)),
        message(9, "mail.low"),
    )
    asker = subject.driver()
    until(lambda: asker.counts(["mail.high"])["mail.high"].ready == 5)
    if not subject.counts_all:
        return
    intake = subject.intake(driver, "mail.high", budget=2)
    take(intake, 2)
    counts = asker.counts(["mail.high", "mail.low"])
    high, low = counts["mail.high"], counts["mail.low"]
    assert (high.ready, high.claimed, high.delayed) == (3, 2, 3)
    assert (low.ready, low.claimed, low.delayed) == (1, 0, 0)


def test_counts_tell_for_how_long_the_oldest_has_been_ready(subject: Subject, driver: Driver) -> None:
    asker = subject.driver()

    def oldest() -> float | None:
        return asker.counts(["mail.high"])["mail.high"].oldest

    assert oldest() in (0.0, None)
    before = time.time()
    put(driver, message(1), message(9, delay=3600.0))
    after = time.time()
    put(driver, message(2))
    until(lambda: asker.counts(["mail.high"])["mail.high"].ready == 2)
    asked, age, told = time.time(), oldest(), time.time()
    if age is None:
        return  # it can't tell
    assert asked - after - 0.01 <= age <= told - before + 0.01
    take(subject.intake(driver, "mail.high"), 2)
    until(lambda: oldest() == 0.0)


def test_counts_tell_how_many_consume(subject: Subject, driver: Driver) -> None:
    put(driver, message(1), message(2, "mail.low"))
    first = subject.intake(driver, "mail.high", "mail.low")
    second = subject.intake(subject.driver(), "mail.high")
    first.fetch(1, 0.0)
    second.fetch(1, 0.0)
    asker = subject.driver()
    until(lambda: asker.counts(["mail.high"])["mail.high"].consumers == 2)
    until(lambda: asker.counts(["mail.low"])["mail.low"].consumers == 1)
    second.close()
    until(lambda: asker.counts(["mail.high"])["mail.high"].consumers == 1)


def test_purge_drops_what_is_ready_and_leaves_what_is_claimed(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(6)), message(9, "mail.low"))
    intake = subject.intake(driver, "mail.high", budget=2)
    held = take(intake, 2)
    delayed = 0
    if subject.purges_delayed:
        put(driver, message(20, delay=3600.0))
        delayed = 1
    assert subject.driver().purge("mail.high") == 4 + delayed
    assert all(intake.holds(delivery) for delivery in held)
    intake.close()
    other = subject.intake(driver, "mail.high", "mail.low")
    assert sorted(numbers(take(other, 3))) == [0, 1, 9]
    assert_nothing_comes(other)


def test_purging_a_queue_that_does_not_exist_drops_nothing(driver: Driver) -> None:
    assert driver.purge("nowhere.low") == 0


def test_peek_shows_the_first_and_leaves_them(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(10)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 10)
    assert numbers(driver.peek("mail.dead", 3)) == [0, 1, 2]
    assert sorted(numbers(take(subject.intake(driver, "mail.dead"), 10))) == list(range(10))


def test_ping_finds_a_driver_that_works(driver: Driver) -> None:
    driver.ping()


# --- walks


def test_a_walk_keeps_moves_and_discards(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead", headers=b"h%d" % n) for n in range(30)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 30)

    def decide(found: StoredMessage) -> Outgoing | Verdict:
        number = int(found.body)
        assert (found.queue, found.headers) == ("mail.dead", b"h%d" % number)
        if number % 3 == 0:
            return Verdict.KEEP
        if number % 3 == 1:
            return Verdict.DISCARD
        return Outgoing("mail.high", found.body, f"job-{number}", b"replayed")

    seen: list[tuple[int, int]] = []
    report = driver.walk("mail.dead", decide, progress=lambda done, total: seen.append((done, total)))
    assert (report.seen, report.kept, report.moved, report.discarded) == (30, 10, 10, 10)
    assert seen[-1] == (30, 30)
    moved = take(subject.intake(driver, "mail.high"), 10)
    assert sorted(numbers(moved)) == list(range(2, 30, 3))
    assert {delivery.headers for delivery in moved} == {b"replayed"}
    left = subject.intake(driver, "mail.dead")
    assert sorted(numbers(take(left, 10))) == list(range(0, 30, 3))
    assert_nothing_comes(left)


def test_a_walk_over_an_empty_queue_sees_nothing(driver: Driver) -> None:
    driver.declare("mail.dead")
    report = driver.walk("mail.dead", lambda found: Verdict.DISCARD)
    assert (report.seen, report.kept, report.moved, report.discarded) == (0, 0, 0, 0)


def test_kept_messages_stay_in_order(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(20)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 20)
    for _ in range(2):
        assert driver.walk("mail.dead", lambda found: Verdict.KEEP).kept == 20
    assert numbers(take(subject.intake(driver, "mail.dead"), 20)) == list(range(20))


def test_a_walk_moves_into_the_future_and_into_its_own_queue(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, "mail.dead"), message(2, "mail.dead"))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 2)
    shown: list[int] = []

    def decide(found: StoredMessage) -> Outgoing:
        number = int(found.body)
        shown.append(number)
        if number == 1:
            return Outgoing("mail.dead", b"11", "job-1")
        return message(22, "mail.high", delay=0.5)

    assert driver.walk("mail.dead", decide).moved == 2
    assert sorted(shown) == [1, 2]
    intake = subject.intake(driver, "mail.dead", "mail.high")
    assert sorted(numbers(take(intake, 2))) == [11, 22]


def test_what_comes_during_a_walk_is_not_shown(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(5)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 5)
    other = subject.driver()
    shown: list[int] = []

    def decide(found: StoredMessage) -> Verdict:
        shown.append(int(found.body))
        put(other, message(100 + len(shown), "mail.dead"))
        return Verdict.DISCARD

    assert driver.walk("mail.dead", decide).discarded == 5
    assert shown == [0, 1, 2, 3, 4]
    assert numbers(take(subject.intake(driver, "mail.dead"), 5)) == [101, 102, 103, 104, 105]


def test_a_walk_that_fails_loses_nothing(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(40)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 40)

    def decide(found: StoredMessage) -> Outgoing | Verdict:
        number = int(found.body)
        if number == 25:
            raise ZeroDivisionError
        return Outgoing("mail.high", found.body, f"job-{number}") if number % 2 else Verdict.KEEP

    with pytest.raises(ZeroDivisionError):
        driver.walk("mail.dead", decide)
    until(lambda: sum(c.ready for c in driver.counts(["mail.dead", "mail.high"]).values()) >= 40)
    intake = subject.intake(driver, "mail.dead", "mail.high")
    seen: list[int] = []  # some may be there twice

    def all_seen() -> bool:
        seen.extend(numbers(intake.fetch(100, 0.1)))
        return set(seen) == set(range(40))

    until(all_seen)


def test_two_walks_over_one_queue_never_overlap(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(60)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 60)
    order: list[str] = []
    both = threading.Barrier(2)

    def walk(name: str) -> None:
        walker = subject.driver()

        def decide(found: StoredMessage) -> Verdict:
            order.append(name)
            time.sleep(0.001)
            return Verdict.KEEP

        both.wait(PATIENCE)
        walker.walk("mail.dead", decide)

    threads = [threading.Thread(target=walk, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["a"] * 60 + ["b"] * 60
    assert len([1 for one, next_one in pairwise(order) if one != next_one]) == 1


def test_walks_over_two_queues_may_overlap(subject: Subject, driver: Driver) -> None:
    put(driver, message(1, "mail.dead"), message(2, "billing.dead"))
    queues = ["mail.dead", "billing.dead"]
    until(lambda: [c.ready for c in driver.counts(queues).values()] == [1, 1])
    inside = threading.Barrier(2)

    def decide(found: StoredMessage) -> Verdict:
        inside.wait(PATIENCE)
        return Verdict.DISCARD

    threads = [threading.Thread(target=subject.driver().walk, args=[queue, decide]) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: [c.ready for c in driver.counts(queues).values()] == [0, 0])


# --- failing and closing


def test_a_put_on_a_closed_driver_says_that_nothing_is_queued(driver: Driver) -> None:
    driver.close()
    outgoing = [message(1), message(2)]
    with pytest.raises(PutError) as caught:
        driver.put(outgoing, deadline=1.0)
    assert caught.value.not_queued == outgoing
    assert caught.value.unknown == []


def test_many_threads_may_put_at_once(subject: Subject, driver: Driver) -> None:
    def send(start: int) -> None:
        for n in range(start, start + 20):
            put(driver, message(n))

    threads = [threading.Thread(target=send, args=[k * 20]) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = numbers(take(subject.intake(driver, "mail.high"), 160))
    assert sorted(found) == list(range(160))
    for k in range(8):  # what one thread sent stays in order
        mine = [number for number in found if number // 20 == k]
        assert mine == sorted(mine)


# --- processes that are killed


@contextmanager
def child(
    target: Callable[..., None], *args: Any
) -> Iterator[tuple[multiprocessing.context.SpawnProcess, Connection]]:
    """A process of its own that is killed at the end, if not before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=[*args, theirs], daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def kill(process: multiprocessing.context.SpawnProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _claim_and_hang(open_driver: Callable[[], Driver], wanted: int, pipe: Connection) -> None:
    intake = open_driver().open_intake(
        IntakeOptions(queues=["mail.high"], budget=wanted, worker=f"w-{os.getpid()}")
    )
    held = take(intake, wanted)
    finish(intake, held[:2])
    pipe.send(numbers(held[2:]))
    signal.pause()


def _walk_and_hang(open_driver: Callable[[], Driver], stop_at: int, pipe: Connection) -> None:
    def decide(found: StoredMessage) -> Outgoing | Verdict:
        number = int(found.body)
        if number == stop_at:
            pipe.send(number)
            signal.pause()
        return Outgoing("mail.high", found.body, f"job-{number}") if number % 2 else Verdict.KEEP

    open_driver().walk("mail.dead", decide)


def _put_for_ever(open_driver: Callable[[], Driver], pipe: Connection) -> None:
    driver = open_driver()
    for n in count():
        put(driver, message(n))
        pipe.send(n)


@pytest.fixture
def processes(subject: Subject) -> None:
    if not subject.across_processes:
        pytest.skip("this driver lives in one process")


@pytest.mark.usefixtures("processes")
def test_the_claims_of_a_killed_worker_come_back(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(10)))
    with child(_claim_and_hang, subject.open, 10) as (process, pipe):
        assert pipe.poll(PATIENCE)
        held = pipe.recv()
        intake = subject.intake(driver, "mail.high")
        assert_nothing_comes(intake)
        kill(process)
        again = take(intake, 8)
    assert sorted(numbers(again)) == sorted(held)
    assert all(delivery.redelivered for delivery in again)


@pytest.mark.usefixtures("processes")
def test_a_waiting_fetch_gets_the_claims_of_a_killed_worker(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n) for n in range(3)))
    with child(_claim_and_hang, subject.open, 3) as (process, pipe):
        assert pipe.poll(PATIENCE)
        pipe.recv()
        killer = threading.Timer(0.3, kill, [process])
        killer.start()
        assert len(take(subject.intake(driver, "mail.high"), 1)) == 1
        killer.join()


@pytest.mark.usefixtures("processes")
def test_what_a_killed_sender_has_put_is_there(subject: Subject, driver: Driver) -> None:
    sent: set[int] = set()
    with child(_put_for_ever, subject.open) as (process, pipe):
        while len(sent) < 50:
            assert pipe.poll(PATIENCE)
            sent.add(pipe.recv())
        kill(process)
        try:
            while pipe.poll(0):
                sent.add(pipe.recv())
        except EOFError:
            pass
    until(lambda: driver.counts(["mail.high"])["mail.high"].ready >= len(sent))
    ready = driver.counts(["mail.high"])["mail.high"].ready
    found = numbers(take(subject.intake(driver, "mail.high", budget=2000), ready))
    assert sent <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.usefixtures("processes")
def test_a_walk_that_is_killed_loses_nothing_and_blocks_nobody(subject: Subject, driver: Driver) -> None:
    put(driver, *(message(n, "mail.dead") for n in range(100)))
    until(lambda: driver.counts(["mail.dead"])["mail.dead"].ready == 100)
    with child(_walk_and_hang, subject.open, 70) as (process, pipe):
        assert pipe.poll(PATIENCE)
        pipe.recv()
        kill(process)
    until(lambda: sum(c.ready for c in driver.counts(["mail.dead", "mail.high"]).values()) >= 100)
    kept: list[int] = []

    def decide(found: StoredMessage) -> Verdict:
        kept.append(int(found.body))
        return Verdict.KEEP

    driver.walk("mail.dead", decide)
    high = driver.counts(["mail.high"])["mail.high"].ready
    moved = numbers(take(subject.intake(driver, "mail.high"), high))
    assert set(kept) | set(moved) == set(range(100))
