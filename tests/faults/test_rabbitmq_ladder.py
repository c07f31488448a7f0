"""The ladder on a real RabbitMQ, over the long run: many retries of one job, and a broker that is killed meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from callboard.brokers.driver import Intake, IntakeOptions, Outgoing
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.servers import PrivateRabbitmq
from tests.closing import closing_all

PATIENCE = 60.0

Open = Callable[[str], RabbitmqDriver]


@pytest.fixture
def open_driver() -> Iterator[Open]:
    with closing_all(RabbitmqDriver) as open_one:
        yield open_one


def intake(driver: RabbitmqDriver) -> Intake:
    return driver.open_intake(IntakeOptions(queues=["mail.high"], budget=1000, worker="test"))


def _retries(driver: RabbitmqDriver, times: int) -> None:
    """One job that fails again and again, and waits a tenth of a second each time."""
    hand = intake(driver)
    driver.put([Outgoing("mail.high", b"the job", "job-1", b"attempt 0")], deadline=PATIENCE)
    due = 0.0
    for attempt in range(times + 1):
        found = hand.fetch(10, PATIENCE)
        assert [(one.body, one.headers) for one in found] == [(b"the job", b"attempt %d" % attempt)]
        assert time.time() >= due - 0.001, "it came early"
        if attempt < times:
            due = time.time() + 0.05
            again = Outgoing("mail.high", b"the job", "job-1", b"attempt %d" % (attempt + 1), due)
            hand.move(found[0], again)
        else:
            hand.ack(found[0])
    assert hand.fetch(1, 0.3) == []


def test_a_job_is_retried_twenty_times_and_there_once(open_driver: Open, amqp_url: str) -> None:
    _retries(open_driver(amqp_url), 20)


@pytest.mark.slow
def test_a_job_is_retried_a_thousand_times_and_there_once(open_driver: Open, amqp_url: str) -> None:
    """RabbitMQ notes every fall in a message's headers; those would grow, and it would take them for a cycle."""
    _retries(open_driver(amqp_url), 1_000)


def test_a_kill_of_the_broker_between_two_falls_loses_no_job_and_lets_none_out_early(
    open_driver: Open, own_rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(own_rabbitmq.url)
    driver.put([Outgoing("mail.high", b"0", "first", b"", time.time() + 0.1)], deadline=PATIENCE)
    hand = intake(driver)
    (first,) = hand.fetch(1, PATIENCE)
    hand.ack(first)
    assert hand.flush(PATIENCE)
    own_rabbitmq.write_down_queues()
    # From 0.1 to 12.7 seconds: all of the first seven levels, some of them after the others.
    dues = {number: time.time() + number / 10 for number in range(1, 128)}
    driver.put(
        [Outgoing("mail.high", b"%d" % number, f"job-{number}", b"", due) for number, due in dues.items()],
        deadline=PATIENCE,
    )
    time.sleep(1.0)  # some are on their way by now; any moment will do
    own_rabbitmq.kill()
    own_rabbitmq.start()
    came: Counter[int] = Counter()
    end = time.monotonic() + 4 * PATIENCE
    while came.keys() != dues.keys() and time.monotonic() < end:
        for delivery in hand.fetch(100, 1.0):
            number = int(delivery.body)
            assert time.time() >= dues[number] - 0.001, "it came early"
            came[number] += 1
            hand.ack(delivery)
    assert came.keys() == dues.keys(), f"lost: {sorted(dues.keys() - came.keys())}"
