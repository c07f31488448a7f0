"""The RabbitMQ driver against a real node: what the suite of drivers can't ask of every driver."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
import structlog
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel

from callboard.brokers.driver import (
    Intake,
    IntakeOptions,
    Outgoing,
    PutError,
    StoredMessage,
    Verdict,
)
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.brokers.rabbitmq.script import Script
from callboard.errors import BrokerUnavailable, CallboardError
from callboard.servers import PrivateRabbitmq
from tests.closing import closing_all
from tests.deliveries import message, numbers, ready, take
from tests.patience import until

PATIENCE = 30.0

Open = Callable[..., RabbitmqDriver]


@pytest.fixture
def open_driver(amqp_url: str) -> Iterator[Open]:
    """Opens drivers that are closed at the end."""
    with closing_all(RabbitmqDriver) as open_one:
        yield lambda url=amqp_url, **options: open_one(url, **options)


@pytest.fixture
def driver(open_driver: Open) -> RabbitmqDriver:
    return open_driver()


@contextmanager
def plain_channel(url: str) -> Iterator[BlockingChannel]:
    """Somebody else's connection."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def intake(driver: RabbitmqDriver, *queues: str, budget: int = 100) -> Intake:
    return driver.open_intake(IntakeOptions(queues=queues, budget=budget, worker="test"))


# -- what is wrong, in one sentence


def refusal(driver: RabbitmqDriver) -> str:
    with pytest.raises(PutError) as caught:
        driver.put([message(1)], deadline=3.0)
    assert len(caught.value.not_queued) == 1
    with pytest.raises(BrokerUnavailable) as pinged:
        driver.ping()
    assert str(caught.value).startswith(str(pinged.value))
    return str(pinged.value)


def test_a_wrong_password_is_one_sentence_and_at_once(open_driver: Open, rabbitmq: PrivateRabbitmq) -> None:
    start = time.monotonic()
    said = refusal(open_driver(f"amqp://guest:hunter2@127.0.0.1:{rabbitmq.port}/v"))
    where = f"127.0.0.1:{rabbitmq.port} (vhost 'v')"
    assert said == f"RabbitMQ at {where} refuses the user 'guest': check the user and password in the URL"
    assert time.monotonic() - start < 3.0


def test_a_wrong_vhost_is_one_sentence(open_driver: Open, rabbitmq: PrivateRabbitmq) -> None:
    said = refusal(open_driver(f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/nowhere"))
    assert said.startswith(
        f"RabbitMQ at 127.0.0.1:{rabbitmq.port} (vhost 'nowhere') doesn't let 'guest' into"
    )


def test_a_server_that_is_away_is_one_sentence(open_driver: Open) -> None:
    with socket.socket() as nobody:  # bound and not listening
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        said = refusal(open_driver(f"amqp://127.0.0.1:{port}"))
    assert said == f"RabbitMQ at 127.0.0.1:{port} (vhost '/') is away: connection refused; is it running?"


def test_tls_where_the_server_speaks_none_is_one_sentence(
    open_driver: Open, rabbitmq: PrivateRabbitmq
) -> None:
    said = refusal(open_driver(f"amqps://127.0.0.1:{rabbitmq.port}"))
    assert said == (
        f"what answers at 127.0.0.1:{rabbitmq.port} (vhost '/') doesn't speak TLS: check the port, and whether the "
        "URL should be amqp://"
    )


@pytest.mark.parametrize(
    ("answers", "hangs_up"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True),
        (b"-ERR unknown command 'AMQP'\r\n", False),
        (b"", True),
    ],
)
def test_something_that_is_not_rabbitmq_is_one_sentence(
    open_driver: Open, answers: bytes, hangs_up: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(100)
                    client.sendall(answers)
                    if not hangs_up:
                        client.recv(100)  # until they hang up

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        said = refusal(open_driver(f"amqp://127.0.0.1:{port}"))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert said == (
        f"what answers at 127.0.0.1:{port} (vhost '/') doesn't speak AMQP: check the port, and whether the URL should "
        "be amqps://"
    )


def test_a_queue_that_somebody_else_declared_is_one_sentence(driver: RabbitmqDriver, amqp_url: str) -> None:
    with plain_channel(amqp_url) as channel:
        channel.queue_declare("mail.high", durable=True)
    with pytest.raises(
        PutError, match=r"^the queue 'mail\.high' exists in RabbitMQ with other arguments"
    ) as caught:
        driver.put([message(1), message(2, "mail.low")], deadline=30.0)
    assert caught.value.not_queued == [message(1)]
    assert caught.value.unknown == []
    assert ready(driver, "mail.low") == 1


def test_a_queue_that_cannot_be_had_keeps_no_other_from_being_consumed(
    driver: RabbitmqDriver, amqp_url: str
) -> None:
    with plain_channel(amqp_url) as channel:
        channel.queue_declare("mail.high", durable=True)
    with structlog.testing.capture_logs() as logs:
        hand = intake(driver, "mail.high", "mail.low")
        driver.put([message(1, "mail.low")], deadline=30.0)
        assert numbers(take(hand, 1)) == [1]
    (refused,) = [entry for entry in logs if entry["event"] == "rabbitmq_queue_refused"]
    assert refused["queue"] == "mail.high"
    assert "other arguments" in refused["reason"]


def test_making_a_driver_connects_to_nothing(open_driver: Open) -> None:
    threads = threading.active_count()
    open_driver("amqp://nowhere.invalid").declare("mail.high")
    assert threading.active_count() == threads


@pytest.fixture
def humble_url(rabbitmq: PrivateRabbitmq, amqp_url: str) -> Iterator[str]:
    """The URL of a user who may publish and consume, and configure nothing."""
    parts = urlsplit(amqp_url)
    rabbitmq.ctl("add_user", "humble", "secret")
    rabbitmq.ctl("set_permissions", "--vhost", parts.path[1:], "humble", "^$", ".*", ".*")
    yield f"amqp://humble:secret@{parts.hostname}:{parts.port}{parts.path}"
    rabbitmq.ctl("delete_user", "humble")


def test_a_user_who_may_not_configure_uses_what_is_there(
    open_driver: Open, driver: RabbitmqDriver, humble_url: str
) -> None:
    driver.put([message(1), message(2, delay=0.1)], deadline=30.0)
    humble = open_driver(humble_url)
    humble.put([message(3), message(4, delay=0.2)], deadline=30.0)
    assert sorted(numbers(take(intake(humble, "mail.high"), 4))) == [1, 2, 3, 4]
    with pytest.raises(
        PutError, match=r"'mail\.low' doesn't exist in RabbitMQ, and our user may not create it"
    ):
        humble.put([message(5, "mail.low")], deadline=30.0)


def test_queues_are_created_ahead_for_a_user_who_may_not_create_any(
    open_driver: Open, driver: RabbitmqDriver, humble_url: str
) -> None:
    humble = open_driver(humble_url)
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(PutError, match="run `callboard queues create`"):
            humble.put([message(1)], deadline=PATIENCE)
        driver.put([message(0)], deadline=PATIENCE)
        with pytest.raises(
            PutError, match=r"which delays need, doesn't exist .* run `callboard queues create`"
        ):
            humble.put([message(1, delay=0.1)], deadline=PATIENCE)
    assert logs == []
    driver.declare("mail.dead")
    for _ in range(2):  # it may be repeated
        assert driver.create_queues() == ["mail.dead", "mail.high"]
    humble.put([message(1), message(2, delay=0.1)], deadline=PATIENCE)
    assert sorted(numbers(take(intake(driver, "mail.high"), 3))) == [0, 1, 2]
    humble.declare("mail.low")
    with pytest.raises(CallboardError, match="may not create it"):
        humble.create_queues()


def test_a_user_who_may_not_publish_is_told_so_at_the_deadline(
    open_driver: Open, driver: RabbitmqDriver, rabbitmq: PrivateRabbitmq, amqp_url: str, humble_url: str
) -> None:
    driver.put([message(1)], deadline=30.0)
    rabbitmq.ctl("set_permissions", "--vhost", urlsplit(amqp_url).path[1:], "humble", "^$", "^$", ".*")
    humble = open_driver(humble_url)
    with pytest.raises(PutError, match="doesn't permit this to 'humble'"):
        humble.put([message(2)], deadline=1.0)
    assert ready(driver, "mail.high") == 1


# -- connections


def connection_names(node: PrivateRabbitmq, vhost: str) -> list[str]:
    lines = node.ctl("list_connections", "vhost", "client_properties").splitlines()
    return [line for line in lines if line.startswith(vhost)]


def test_a_process_has_two_connections_that_say_who_they_are(
    open_driver: Open, rabbitmq: PrivateRabbitmq, amqp_url: str
) -> None:
    driver = open_driver(connection_name="callboard web-1")
    queues = [f"c{n}.{word}" for n in range(6) for word in ("critical", "high", "medium", "low")]
    hand = intake(driver, *queues)
    driver.put([message(n, queue) for n, queue in enumerate(queues)], deadline=10.0)
    take(hand, len(queues))
    vhost = urlsplit(amqp_url).path[1:]
    until(lambda: len(connection_names(rabbitmq, vhost)) == 2)
    names = " ".join(connection_names(rabbitmq, vhost))
    assert "callboard web-1: publishing" in names
    assert "callboard web-1: worker test" in names


def test_the_next_host_is_tried_when_one_is_away(open_driver: Open, amqp_url: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        parts = urlsplit(amqp_url)
        hosts = f"127.0.0.1:{nobody.getsockname()[1]},{parts.hostname}:{parts.port}"
        driver = open_driver(f"amqp://guest:guest@{hosts}{parts.path}")
        hand = intake(driver, "mail.high")
        driver.put([message(1)], deadline=30.0)
        assert numbers(take(hand, 1)) == [1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(
        [*command, "-addext", "subjectAltName=DNS:localhost", *files], check=True, capture_output=True
    )
    return folder


def test_tls_is_spoken_and_the_certificate_verified(certificates: Path, open_driver: Open) -> None:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    settings = {
        "listeners.ssl.default": f"127.0.0.1:{port}",
        "ssl_options.certfile": str(certificates / "cert.pem"),
        "ssl_options.keyfile": str(certificates / "key.pem"),
    }
    with PrivateRabbitmq(settings=settings):
        url = f"amqps://guest:guest@localhost:{port}/%2F"
        trusting = open_driver(f"{url}?cacertfile={certificates / 'cert.pem'}")
        trusting.put([message(n) for n in range(100)], deadline=10.0)
        assert numbers(take(intake(trusting, "mail.high"), 100)) == list(range(100))
        said = refusal(open_driver(url))
        assert said.endswith("is away: its certificate isn't trusted: self-signed certificate")


# -- messages


def test_messages_of_other_producers_are_received(driver: RabbitmqDriver, amqp_url: str) -> None:
    hand = intake(driver, "mail.high")
    until(lambda: driver.counts(["mail.high"])["mail.high"].consumers == 1)
    with plain_channel(amqp_url) as channel:
        channel.basic_publish("", "mail.high", b"bare")
        properties = pika.BasicProperties(
            headers={"callboard": 7, "since_us": "x"}, content_type="text/plain"
        )
        channel.basic_publish("", "mail.high", b"odd" * 100_000, properties)
    bare, odd = take(hand, 2)
    assert (bare.body, bare.headers) == (b"bare", b"")
    assert (odd.body, odd.headers) == (b"odd" * 100_000, b"")


def test_a_message_looks_well_in_the_management_ui(driver: RabbitmqDriver, amqp_url: str) -> None:
    driver.put([Outgoing("mail.high", b'{"a": 1}', "0192-id", b'{"attempt": 1}')], deadline=30.0)
    with plain_channel(amqp_url) as channel:
        _, properties, body = channel.basic_get("mail.high")
    assert (properties.message_id, properties.app_id, properties.delivery_mode) == ("0192-id", "callboard", 2)
    assert properties.content_type == "application/json"
    assert abs(properties.timestamp - time.time()) < 60
    assert properties.headers["callboard"] == '{"attempt": 1}'
    assert body == b'{"a": 1}'


def test_a_message_too_large_for_amqp_is_refused_without_harm_to_others(driver: RabbitmqDriver) -> None:
    broken = Outgoing("mail.high", b"1", "job", b"x" * 200_000)
    with pytest.raises(PutError, match="headers of job job") as caught:
        driver.put([broken, message(2)], deadline=30.0)
    assert caught.value.not_queued == [broken]
    until(lambda: ready(driver, "mail.high") == 1)


def test_namespaces_share_a_vhost_without_meeting(open_driver: Open, amqp_url: str) -> None:
    one, two = open_driver(namespace="one"), open_driver(namespace="two")
    hand = intake(two, "mail.high", "mail.dead")
    one.put([message(1), message(2, delay=0.2)], deadline=30.0)
    two.put([message(3), message(4, delay=0.2)], deadline=30.0)
    assert sorted(numbers(take(hand, 2))) == [3, 4]
    assert sorted(numbers(take(intake(one, "mail.high"), 2))) == [1, 2]
    with plain_channel(amqp_url) as channel:
        assert channel.queue_declare("one.mail.high", passive=True)
        assert channel.queue_declare("two.callboard.delay.unroutable", passive=True)


def test_every_queue_is_a_quorum_queue_and_walked_ones_have_one_consumer(
    driver: RabbitmqDriver, rabbitmq: PrivateRabbitmq, amqp_url: str
) -> None:
    driver.put([message(1), message(2, "mail.dead"), message(3, delay=60)], deadline=30.0)
    vhost = urlsplit(amqp_url).path[1:]
    lines = rabbitmq.ctl("list_queues", "--vhost", vhost, "name", "type", "arguments").splitlines()
    queues = {line.split("\t")[0]: line.split("\t")[1:] for line in lines[1:]}
    assert {kind for kind, _ in queues.values()} == {"quorum"}
    assert '{"x-delivery-limit",1000000}' in queues["mail.high"][1]
    assert "x-single-active-consumer" in queues["mail.dead"][1]
    assert len([name for name in queues if name.startswith("callboard.delay.")]) == 28 + 1


# -- delays


def test_the_ladder_is_built_at_the_first_delay_and_not_before(driver: RabbitmqDriver) -> None:
    driver.put([message(1)], deadline=30.0)
    with pytest.raises(BrokerUnavailable, match="no exchange"):
        driver._publisher.link.ask(_passive_exchange("callboard.delay.00"), 5.0)
    driver.put([message(2, delay=60)], deadline=30.0)
    driver._publisher.link.ask(_passive_exchange("callboard.delay.00"), 5.0)


def _passive_exchange(name: str) -> Script[None]:
    yield partial(Channel.exchange_declare, exchange=name, passive=True)


def test_a_job_can_be_delayed_again_and_again(driver: RabbitmqDriver) -> None:
    hand = intake(driver, "mail.high")
    driver.put([message(0, delay=0.2)], deadline=30.0)
    for attempt in range(1, 6):
        (delivery,) = take(hand, 1)
        due = time.time() + 0.3
        hand.move(delivery, Outgoing("mail.high", delivery.body, "job-0", b"attempt %d" % attempt, due))
    (delivery,) = take(hand, 1)
    assert time.time() >= due
    assert delivery.headers == b"attempt 5"


def test_delays_across_several_levels_are_never_early(driver: RabbitmqDriver) -> None:
    sent = [message(n, delay=0.1 + n * 0.01) for n in range(300)]
    driver.put(sent, deadline=10.0)
    hand = intake(driver, "mail.high", budget=1000)
    late = []
    for _ in range(300):
        (delivery,) = take(hand, 1)
        due = sent[int(delivery.body)].due
        assert due is not None
        late.append(time.time() - due)
    assert min(late) >= 0
    assert hand.fetch(1, 0.3) == []


def test_the_longest_delay_is_accepted_and_one_beyond_refused(driver: RabbitmqDriver) -> None:
    driver.put([message(1, delay=300 * 86_400)], deadline=30.0)
    with pytest.raises(PutError, match="beyond the longest") as caught:
        driver.put([message(2, delay=400 * 86_400)], deadline=30.0)
    assert len(caught.value.not_queued) == 1
    until(lambda: ready(driver, "callboard.delay.27") == 1)


def test_a_delayed_job_that_came_ahead_of_its_time_goes_to_another_when_its_worker_ends(
    open_driver: Open,
) -> None:
    first, second = open_driver(), open_driver()
    hand = intake(first, "mail.high")
    sent = [message(number, delay=0.5 + number * 0.02) for number in range(20)]
    first.put(sent, deadline=PATIENCE)
    (came,) = take(hand, 1)  # of the others some are kept here until they are due
    hand.ack(came)
    hand.close()
    other = intake(second, "mail.high")
    dues = {f"h{number}".encode(): one.due for number, one in enumerate(sent)}
    for _ in range(19):
        (delivery,) = take(other, 1)
        due = dues.pop(delivery.headers)
        assert due is not None
        assert time.time() >= due
        other.ack(delivery)


def test_jobs_that_became_due_while_the_ladder_was_built_come_in_their_order(driver: RabbitmqDriver) -> None:
    driver.put(
        [message(number, delay=-delay) for number, delay in enumerate([1.0, 4.0, 2.0])], deadline=PATIENCE
    )
    assert numbers(take(intake(driver, "mail.high"), 3)) == [1, 2, 0]


@pytest.mark.parametrize("namespace", ["", "shop"])
def test_a_delayed_job_whose_queue_was_deleted_meanwhile_still_arrives(
    open_driver: Open, amqp_url: str, namespace: str
) -> None:
    driver = open_driver(namespace=namespace)
    driver.put([message(0, delay=3600.0)], deadline=PATIENCE)  # builds the ladder
    delayed = [message(1, delay=4.0), message(2, "mail.low", delay=4.0)]
    driver.put(delayed, deadline=PATIENCE)
    with plain_channel(amqp_url) as channel:
        channel.queue_delete(f"{namespace}.mail.high" if namespace else "mail.high")
    with structlog.testing.capture_logs() as logs:
        intake(driver, "other.high")  # any worker finds it
        until(lambda: ready(driver, "mail.high") == 1)
    assert delayed[0].due is not None
    assert time.time() >= delayed[0].due
    (found,) = [entry for entry in logs if entry["event"] == "rabbitmq_delayed_job_found_no_queue"]
    assert (found["queue"], found["job_id"]) == ("mail.high", "job-1")
    hand = intake(driver, "mail.high", "mail.low")
    assert {delivery.headers for delivery in take(hand, 2)} == {b"h1", b"h2"}
    until(lambda: ready(driver, "callboard.delay.unroutable") == 0)


def test_a_queue_that_was_deleted_is_bound_to_the_ladder_again(open_driver: Open, amqp_url: str) -> None:
    producer, worker = open_driver(), open_driver()
    producer.put([message(1, delay=0.1)], deadline=30.0)
    hand = intake(worker, "mail.high")
    take(hand, 1)
    with plain_channel(amqp_url) as channel:
        channel.queue_delete("mail.high")
    until(lambda: worker.counts(["mail.high"])["mail.high"].consumers == 1)

    def finds_no_queue() -> bool:
        """A delayed job of the producer, who knows nothing of the deletion."""
        with structlog.testing.capture_logs() as logs:
            producer.put([message(2, delay=0.1)], deadline=30.0)
            take(hand, 1)
        return any(entry["event"] == "rabbitmq_delayed_job_found_no_queue" for entry in logs)

    assert finds_no_queue()
    until(lambda: not finds_no_queue())


def test_a_queue_in_the_name_of_another_gets_no_foreign_delays(driver: RabbitmqDriver) -> None:
    queues = ["high", "email.high", "x.email.high"]
    hand = intake(driver, *queues)
    driver.put([message(n, queue, delay=0.2) for n, queue in enumerate(queues)], deadline=30.0)
    came = {delivery.queue: int(delivery.body) for delivery in take(hand, 3)}
    assert came == {queue: n for n, queue in enumerate(queues)}
    assert hand.fetch(1, 0.3) == []


# -- the prefetch


def test_a_worker_that_takes_its_time_leaves_the_rest_to_others(open_driver: Open) -> None:
    slow, free = open_driver(), open_driver()
    slow.put([message(n) for n in range(50)], deadline=10.0)
    hoarder = intake(slow, "mail.high", budget=100)
    held = take(hoarder, 2)  # the other 48 are here, too
    others = intake(free, "mail.high", budget=100)
    came = take(others, 47)
    assert not set(numbers(held)) & set(numbers(came))
    assert all(hoarder.holds(delivery) for delivery in held)


def test_a_worker_whose_threads_are_all_busy_keeps_not_even_one_from_others(open_driver: Open) -> None:
    busy, free = open_driver(), open_driver()
    hoarder = intake(busy, "mail.high", budget=100)
    busy.put([message(n) for n in range(3)], deadline=10.0)
    held = take(hoarder, 1)
    lane = hoarder._lanes["mail.high"]  # type: ignore[attr-defined]
    until(lambda: lane.prefetch == 1 and ready(free, "mail.high") == 1)  # so one is here, and stays
    others = intake(free, "mail.high", budget=100)
    assert {*numbers(held), *numbers(take(others, 2))} == {0, 1, 2}


def test_the_prefetch_grows_again_when_work_is_short(driver: RabbitmqDriver) -> None:
    hand = intake(driver, "mail.high", budget=100)
    driver.put([message(n) for n in range(50)], deadline=10.0)
    (first,) = take(hand, 1)
    lane = hand._lanes["mail.high"]  # type: ignore[attr-defined]
    until(lambda: lane.prefetch == 1)
    hand.ack(first)
    assert {int(first.body), *numbers(take(hand, 49))} == set(range(50))
    assert lane.prefetch >= 16


def test_no_more_is_held_than_the_budget_while_the_prefetch_grows(driver: RabbitmqDriver) -> None:
    hand = intake(driver, "mail.high", budget=20)
    driver.put([message(n) for n in range(100)], deadline=10.0)
    held = take(hand, 1)
    lane = hand._lanes["mail.high"]  # type: ignore[attr-defined]
    until(lambda: lane.prefetch == 1)
    most = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        held += hand.fetch(100, 0.05)
        most = max(most, len(lane.hold.unacked))
    assert most <= 20
    assert len(held) == len(set(numbers(held)))


# -- walks


def test_a_second_walk_is_refused_with_a_sentence_when_the_first_does_not_end(
    open_driver: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.brokers.rabbitmq.walk.PATIENCE", 0.5)
    first, second = open_driver(), open_driver()
    first.put([message(1, "mail.dead")], deadline=30.0)
    until(lambda: ready(first, "mail.dead") == 1)
    inside, go_on = threading.Event(), threading.Event()

    def decide(_: StoredMessage) -> Verdict:
        inside.set()
        assert go_on.wait(PATIENCE)
        return Verdict.KEEP

    walker = threading.Thread(target=first.walk, args=["mail.dead", decide])
    walker.start()
    assert inside.wait(PATIENCE)
    with pytest.raises(BrokerUnavailable, match=r"another walk over 'mail\.dead' is under way"):
        second.walk("mail.dead", decide)
    go_on.set()
    walker.join()
    assert second.walk("mail.dead", lambda _: Verdict.DISCARD).discarded == 1


def test_a_walk_over_many_letters_keeps_their_order(driver: RabbitmqDriver) -> None:
    driver.put([message(n, "mail.dead") for n in range(3000)], deadline=10.0)
    until(lambda: ready(driver, "mail.dead") == 3000)
    report = driver.walk("mail.dead", lambda found: Verdict.DISCARD if int(found.body) % 2 else Verdict.KEEP)
    assert (report.seen, report.kept, report.discarded) == (3000, 1500, 1500)
    until(lambda: ready(driver, "mail.dead") == 1500)
    assert numbers(driver.peek("mail.dead", 500)) == list(range(0, 1000, 2))
    assert sorted(numbers(take(intake(driver, "mail.dead", budget=2000), 1500))) == list(range(0, 3000, 2))


def test_a_walk_ends_when_somebody_else_takes_the_rest(driver: RabbitmqDriver) -> None:
    driver.put([message(n, "mail.dead") for n in range(1500)], deadline=10.0)
    until(lambda: ready(driver, "mail.dead") == 1500)
    purged: list[int] = []

    def decide(_: StoredMessage) -> Verdict:
        if not purged:
            purged.append(driver.purge("mail.dead"))
        return Verdict.DISCARD

    report = driver.walk("mail.dead", decide)
    assert report.seen == 1500 - purged[0]
