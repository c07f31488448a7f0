"""RabbitMQ fails in every way that it has; nothing is lost, and no ack is applied to another message."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pytest

from callboard.brokers.driver import Intake, IntakeOptions, PutError
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.errors import BrokerUnavailable
from callboard.servers import PrivateRabbitmq
from callboard.servers.proxy import FaultProxy
from tests.closing import closing_all
from tests.deliveries import message, numbers, ready, take
from tests.patience import until

PATIENCE = 30.0

Open = Callable[..., RabbitmqDriver]


@pytest.fixture
def open_driver() -> Iterator[Open]:
    """Opens drivers that are closed at the end."""
    with closing_all(RabbitmqDriver) as open_one:
        yield open_one


def intake(driver: RabbitmqDriver, *queues: str, budget: int = 100) -> Intake:
    return driver.open_intake(IntakeOptions(queues=queues, budget=budget, worker="test"))


# -- connections that the server closes


def test_an_ack_from_before_a_reconnect_acks_no_other_message(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    """The tags begin at 1 again: the first job's late ack would take the second's message."""
    driver = open_driver(amqp_url)
    driver.put([message(n) for n in range(8)], deadline=10.0)
    hand = intake(driver, "mail.high", budget=4)
    held = take(hand, 4)
    rabbitmq.close_all_connections()
    until(lambda: not any(hand.holds(delivery) for delivery in held))
    again = take(hand, 4)
    assert sorted(numbers(again)) == [0, 1, 2, 3]
    for delivery in held:  # the jobs go on, and end now
        hand.ack(delivery)
    hand.give_back(held)
    assert hand.flush(PATIENCE)
    assert all(hand.holds(delivery) for delivery in again)
    hand.close()
    until(lambda: ready(driver) == 8)
    other = intake(driver, "mail.high")
    assert sorted(numbers(take(other, 8))) == list(range(8))


def test_deliveries_that_were_not_fetched_when_the_connection_closed_come_once(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(amqp_url)
    driver.put([message(n) for n in range(50)], deadline=10.0)
    hand = intake(driver, "mail.high")
    first = take(hand, 1)  # the other 49 are here too, unfetched
    rabbitmq.close_all_connections()
    until(lambda: not hand.holds(first[0]))
    came = take(hand, 50)
    assert sorted(numbers(came)) == list(range(50))
    assert all(hand.holds(delivery) for delivery in came)
    assert hand.fetch(10, 0.3) == []


def test_what_a_worker_gave_back_itself_comes_to_it_as_new(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    """It knows what it never started, and that nobody else has had it since."""
    driver = open_driver(amqp_url)
    driver.put([message(n) for n in range(4)], deadline=10.0)
    hand = intake(driver, "mail.high", budget=4)
    held = take(hand, 4)
    hand.give_back(held[:2])
    again = take(hand, 2)
    assert sorted(numbers(again)) == [0, 1]
    assert not any(delivery.redelivered for delivery in held + again)
    hand.close()
    other = take(intake(driver, "mail.high"), 4)
    assert all(delivery.redelivered for delivery in other), "another worker can't know that"


def test_only_what_was_fetched_comes_as_redelivered_after_a_closed_connection(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(amqp_url)
    driver.put([message(n) for n in range(10)], deadline=10.0)
    hand = intake(driver, "mail.high")
    held = take(hand, 3)
    rabbitmq.close_all_connections()
    until(lambda: not hand.holds(held[0]))
    came = take(hand, 10)
    assert sorted(int(delivery.body) for delivery in came if delivery.redelivered) == [0, 1, 2]


def test_everything_ends_through_three_reconnects(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(amqp_url)
    hand = intake(driver, "mail.high", "mail.low", budget=64)
    acked: Counter[int] = Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for delivery in hand.fetch(20, 0.1):
                if hand.holds(delivery):
                    acked[int(delivery.body)] += 1
                    hand.ack(delivery)

    worker = threading.Thread(target=work)
    worker.start()
    for third in range(3):
        for n in range(third * 300, third * 300 + 300):
            driver.put([message(n, "mail.high" if n % 2 else "mail.low")], deadline=10.0)
            if n % 300 == 150:
                rabbitmq.close_all_connections()
    until(lambda: len(acked) == 900)
    stop.set()
    worker.join()
    assert hand.flush(PATIENCE)
    # An ack that was on its way when the connection closed is lost, and its message comes again.
    assert sum(acked.values()) - 900 <= 3 * 64
    hand.close()
    until(lambda: ready(driver) + ready(driver, "mail.low") == 0)


def test_a_channel_that_the_server_closes_takes_no_neighbour_with_it(
    open_driver: Open, own_rabbitmq: PrivateRabbitmq
) -> None:
    """A job that holds its message for longer than `consumer_timeout`."""
    own_rabbitmq.evaluate("application:set_env(rabbit, consumer_timeout, 1000)")
    own_rabbitmq.evaluate("application:set_env(rabbit, channel_tick_interval, 500)")
    driver = open_driver(own_rabbitmq.url)
    hand = intake(driver, "mail.high", "mail.low")
    driver.put([message(1)], deadline=10.0)
    (slow,) = take(hand, 1)
    until(lambda: not hand.holds(slow))
    driver.put([message(2, "mail.low")], deadline=10.0)
    came = take(hand, 2)
    assert sorted(numbers(came)) == [1, 2]
    hand.ack(slow)
    for delivery in came:
        hand.ack(delivery)
    assert hand.flush(PATIENCE)
    hand.close()
    until(lambda: ready(driver) + ready(driver, "mail.low") == 0)


@pytest.mark.parametrize("guarded", [True, False])
def test_an_error_of_our_own_in_the_connection_thread_costs_a_reconnect_and_no_more(
    open_driver: Open, amqp_url: str, guarded: bool
) -> None:
    driver = open_driver(amqp_url)
    hand = intake(driver, "mail.high")
    driver.put([message(1)], deadline=10.0)
    (held,) = take(hand, 1)
    for link in (driver._publisher.link, hand.link):  # type: ignore[attr-defined]
        run = link.call if guarded else link._loop.add_callback_threadsafe
        run(lambda: 1 / 0)
    until(lambda: not hand.holds(held))
    driver.put([message(2)], deadline=10.0)
    assert sorted(numbers(take(hand, 2))) == [1, 2]


# -- queues that go


def test_a_deleted_queue_is_declared_again_and_the_message_sent(open_driver: Open, amqp_url: str) -> None:
    driver = open_driver(amqp_url)
    driver.put([message(1), message(2, "mail.low")], deadline=10.0)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    connection.channel().queue_delete("mail.high")
    driver.put(
        [message(n, queue) for n in range(3, 103) for queue in ("mail.high", "mail.low")], deadline=10.0
    )
    connection.close()
    until(lambda: (ready(driver), ready(driver, "mail.low")) == (100, 101))


def test_a_consumed_queue_that_is_deleted_is_consumed_again(open_driver: Open, amqp_url: str) -> None:
    driver = open_driver(amqp_url)
    hand = intake(driver, "mail.high")
    driver.put([message(1)], deadline=10.0)
    take(hand, 1)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    connection.channel().queue_delete("mail.high")
    connection.close()
    driver.put([message(2)], deadline=10.0)
    assert numbers(take(hand, 1)) == [2]


def test_a_deleted_ladder_is_built_again(open_driver: Open, amqp_url: str) -> None:
    driver = open_driver(amqp_url)
    driver.put([message(1, delay=60)], deadline=10.0)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    for level in range(28):
        channel.exchange_delete(f"callboard.delay.{level:02d}")
    channel.exchange_delete("callboard.delay.delivery")
    connection.close()
    driver.put([message(n, delay=0.3) for n in range(20)], deadline=10.0)
    driver.put([message(n) for n in range(20, 40)], deadline=10.0)
    assert sorted(numbers(take(intake(driver, "mail.high"), 40))) == list(range(40))


# -- a server that is away


def test_a_put_while_the_server_is_away_raises_at_its_deadline(
    open_driver: Open, own_rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(own_rabbitmq.url)
    driver.put([message(0)], deadline=10.0)
    own_rabbitmq.stop()
    outgoing = [message(1), message(2)]
    start = time.monotonic()
    with pytest.raises(PutError, match=r"is away: .*2 not queued of 2") as caught:
        driver.put(outgoing, deadline=2.0)
    assert 1.9 <= time.monotonic() - start <= 3.0
    assert (caught.value.not_queued, caught.value.unknown) == (outgoing, [])
    with pytest.raises(BrokerUnavailable, match="is away"):
        driver.counts(["mail.high"])
    hand = intake(driver, "mail.high")
    assert hand.fetch(1, 0.1) == []
    own_rabbitmq.start()
    driver.put([message(3)], deadline=PATIENCE)
    assert sorted(numbers(take(hand, 2))) == [0, 3]


def test_what_was_confirmed_survives_a_kill_of_the_server(
    open_driver: Open, own_rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(own_rabbitmq.url)
    driver.put([message(0), message(0, delay=0.1)], deadline=10.0)
    own_rabbitmq.write_down_queues()
    confirmed: set[int] = set()
    doubtful: set[int] = set()
    refused: set[int] = set()
    stop = threading.Event()

    def send(start: int) -> None:
        number = start
        while not stop.is_set():
            batch = [message(n, delay=2.0 if n % 5 == 0 else None) for n in range(number, number + 3)]
            number += 3
            try:
                driver.put(batch, deadline=1.0)
            except PutError as error:
                doubtful.update(int(one.body) for one in error.unknown)
                refused.update(int(one.body) for one in error.not_queued)
                batch = [one for one in batch if one not in error.unknown + error.not_queued]
            confirmed.update(int(one.body) for one in batch)

    threads = [threading.Thread(target=send, args=[k * 1_000_000 + 1]) for k in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(confirmed) > 500)
    own_rabbitmq.kill()
    before = len(confirmed)
    own_rabbitmq.start()
    until(lambda: len(confirmed) > before + 200)
    stop.set()
    for thread in threads:
        thread.join()
    hand = intake(driver, "mail.high", budget=1000)
    came: Counter[int] = Counter()

    def all_came() -> bool:
        for delivery in hand.fetch(1000, 0.2):
            came[int(delivery.body)] += 1
            hand.ack(delivery)
        return confirmed <= came.keys()

    until(all_came)
    assert not came.keys() & refused, "said to be not queued"
    assert came.keys() <= confirmed | doubtful | {0}


def is_refused(driver: RabbitmqDriver) -> bool:
    try:
        driver.put([message(7)], deadline=1.0)
    except PutError as error:
        return len(error.not_queued + error.unknown) == 1
    return False


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_an_alarm_makes_a_put_raise_at_its_deadline(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq, what: str
) -> None:
    driver = open_driver(amqp_url)
    driver.put([message(0)], deadline=10.0)
    set_alarm = rabbitmq.set_memory_alarm if what == "memory" else rabbitmq.set_disk_alarm
    set_alarm(True)
    try:
        until(lambda: is_refused(driver))  # the node takes a moment to believe it
        start = time.monotonic()
        with pytest.raises(PutError, match=r"takes no messages now: low on") as caught:
            driver.put([message(1), message(2)], deadline=1.0)
        assert 0.9 <= time.monotonic() - start <= 2.0
        # The server has told us: what comes now isn't even written.
        assert len(caught.value.not_queued) == 2
        with pytest.raises(BrokerUnavailable, match="takes no messages now"):
            driver.ping()
        assert ready(driver) >= 1  # what there is can be asked all the same
    finally:
        set_alarm(False)
    driver.put([message(3)], deadline=10.0)


def test_nothing_is_started_from_a_connection_that_has_fallen_silent(
    open_driver: Open, own_rabbitmq: PrivateRabbitmq
) -> None:
    driver = open_driver(f"{own_rabbitmq.url}?heartbeat=4")
    driver.put([message(n) for n in range(3)], deadline=10.0)
    hand = intake(driver, "mail.high")
    held = take(hand, 3)
    with own_rabbitmq.frozen():
        assert hand.holds(held[0])
        until(lambda: not any(hand.holds(delivery) for delivery in held))
        start = time.monotonic()
        with pytest.raises(PutError, match="RabbitMQ at") as caught:
            driver.put([message(9)], deadline=1.0)
        assert time.monotonic() - start <= 2.0
        assert len(caught.value.unknown) == 1


def test_far_delays_survive_a_kill_of_the_server(open_driver: Open, own_rabbitmq: PrivateRabbitmq) -> None:
    driver = open_driver(own_rabbitmq.url)
    days = [1, 10, 50, 100, 200, 300]
    driver.put([message(n, delay=day * 86_400) for n, day in enumerate(days)], deadline=10.0)
    driver.put([message(n, delay=8.0) for n in range(100, 200)], deadline=10.0)
    own_rabbitmq.write_down_queues()
    own_rabbitmq.kill()
    own_rabbitmq.start()
    hand = intake(driver, "mail.high", budget=200)
    assert sorted(numbers(take(hand, 100))) == list(range(100, 200))
    levels = [f"callboard.delay.{level:02d}" for level in range(28)]
    waiting = driver.counts(levels)
    assert sum(counts.ready for counts in waiting.values()) == len(days)
    assert waiting["callboard.delay.27"].ready == 2


# -- forks


def test_a_forked_child_opens_its_own_connection_and_leaves_the_parents_alone(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    program = textwrap.dedent("""
        import os, sys, warnings
        from callboard.brokers.driver import IntakeOptions, Outgoing
        from callboard.brokers.rabbitmq import RabbitmqDriver
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: what is tested
        driver = RabbitmqDriver(sys.argv[1])
        driver.put([Outgoing("mail.high", b"1", "1")], deadline=10)
        hand = driver.open_intake(IntakeOptions(["mail.low"], 10, "parent"))
        assert hand.fetch(1, 0.1) == []
        child = os.fork()
        if not child:
            for n in range(200):
                driver.put([Outgoing("mail.high", b"2", "2")], deadline=10)
            driver.close()
            os._exit(0)
        for n in range(200):
            driver.put([Outgoing("mail.high", b"3", "3")], deadline=10)
        assert os.waitpid(child, 0)[1] == 0
        driver.put([Outgoing("mail.low", b"4", "4")], deadline=10)
        (delivery,) = hand.fetch(1, 10)
        hand.ack(delivery)
        assert hand.flush(10) and hand.holds(delivery) is False
        print("opened", driver._publisher._link.opened, hand._link.opened)
        driver.close()
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, amqp_url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "opened 1 1", done.stdout  # the parent never had to reconnect
    driver = open_driver(amqp_url)
    until(lambda: ready(driver) == 401)
    vhost = urlsplit(amqp_url).path[1:]
    until(lambda: vhost not in rabbitmq.ctl("list_connections", "vhost").replace(vhost, "", 1))


# -- the network


def test_what_is_given_to_another_is_not_started_from_a_half_open_connection(
    open_driver: Open, amqp_url: str, rabbitmq: PrivateRabbitmq
) -> None:
    """The server takes our silence for our end and gives our messages to others. We haven't heard of that, but of
    nothing else, either: by then we hold none of them, fetched or not."""
    with FaultProxy(rabbitmq.port) as proxy:
        driver = open_driver(f"{proxy.url(amqp_url)}?heartbeat=4")
        driver.put([message(n) for n in range(10)], deadline=10.0)
        cut_off = intake(driver, "mail.high")
        held = take(cut_off, 3)
        other = intake(open_driver(amqp_url), "mail.high")
        proxy.half_open()
        proxy.refuse()  # nor does it get another connection
        given = take(other, 1)
        assert not any(cut_off.holds(delivery) for delivery in held)
        unfetched = cut_off.fetch(10, 0)
        assert not any(cut_off.holds(delivery) for delivery in unfetched)
        given += take(other, 9)
        assert sorted(numbers(given)) == list(range(10))
