"""The Redis driver against a real server: what the suite of drivers can't ask of every driver."""

from __future__ import annotations

import random
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
import trustme

from callboard.brokers.driver import (
    Delivery,
    Intake,
    IntakeOptions,
    PutError,
    StoredMessage,
    Verdict,
)
from callboard.brokers.redis import RedisDriver
from callboard.brokers.redis import intake as intake_module
from callboard.brokers.redis.intake import RedisIntake
from callboard.errors import BrokerUnavailable
from callboard.redis.link import Link
from callboard.servers import PrivateRedis
from callboard.servers.process import PORTS
from tests.closing import closing_all
from tests.deliveries import message, numbers, put, take
from tests.patience import until

PATIENCE = 30.0

Open = Callable[..., RedisDriver]
Installed = Callable[[Callable[[], PrivateRedis]], PrivateRedis]


@pytest.fixture
def open_driver(redis_url: str) -> Iterator[Open]:
    """Opens drivers that are closed at the end."""
    with closing_all(RedisDriver) as open_one:
        yield lambda url=redis_url, **options: open_one(url, **options)


@pytest.fixture
def driver(open_driver: Open) -> RedisDriver:
    return open_driver()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """Somebody else's connection; what it has set is put back."""
    client = redis.Redis.from_url(redis_url, protocol=2)
    yield client
    for name, value in {"maxmemory": "0", "maxmemory-policy": "noeviction", "requirepass": ""}.items():
        client.config_set(name, value)
    client.close()


def intake(driver: RedisDriver, *queues: str, budget: int = 1000, worker: str = "test") -> Intake:
    return driver.open_intake(IntakeOptions(queues=queues or ("mail.high",), budget=budget, worker=worker))


# -- waiting and being woken


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits doesn't look by himself, so that only a ring can wake him."""
    monkeypatch.setattr(intake_module, "LONGEST_SLEEP", 10 * PATIENCE)


class Waiting:
    """A fetch that waits, in a thread."""

    def __init__(self, server: Any, hand: Intake) -> None:
        self.found: list[Delivery] = []
        self._thread = threading.Thread(target=self._fetch, args=[hand], daemon=True)
        before = server.scard("callboard:{.}:idle")
        self._thread.start()
        until(lambda: server.scard("callboard:{.}:idle") > before)

    def _fetch(self, hand: Intake) -> None:
        self.found = hand.fetch(100, 5 * PATIENCE)

    def result(self) -> list[Delivery]:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "nobody rang"
        return self.found


@pytest.mark.usefixtures("never_looks")
def test_a_put_wakes_who_waits(open_driver: Open, driver: RedisDriver, server: Any) -> None:
    waiting = Waiting(server, intake(driver, "mail.low", "mail.high"))
    put(open_driver(), 1)
    assert numbers(waiting.result()) == [1]


@pytest.mark.usefixtures("never_looks")
def test_one_message_wakes_one_worker_and_two_wake_two(
    open_driver: Open, driver: RedisDriver, server: Any
) -> None:
    hands = [intake(driver, worker=f"w{n}", budget=1) for n in range(3)]
    waiting = [Waiting(server, hand) for hand in hands]
    put(open_driver(), 1)
    until(lambda: server.scard("callboard:{.}:idle") == 2)
    put(open_driver(), 2, 3)
    assert sorted(number for one in waiting for number in numbers(one.result())) == [1, 2, 3]


@pytest.mark.usefixtures("never_looks")
def test_who_waits_for_other_queues_is_not_woken(open_driver: Open, driver: RedisDriver, server: Any) -> None:
    other = Waiting(server, intake(driver, "mail.low", worker="other"))
    put(open_driver(), 1)
    assert server.scard("callboard:{.}:idle") == 1
    open_driver().put([message(2, "mail.low")], deadline=PATIENCE)
    assert numbers(other.result()) == [2]


@pytest.mark.usefixtures("never_looks")
def test_who_waits_knows_when_something_is_due(driver: RedisDriver, server: Any) -> None:
    delayed = [message(1, delay=1.5)]
    driver.put(delayed, deadline=PATIENCE)
    waiting = Waiting(server, intake(driver))
    assert numbers(waiting.result()) == [1]
    assert delayed[0].due is not None
    assert 0 <= time.time() - delayed[0].due < 5


@pytest.mark.usefixtures("never_looks")
def test_what_is_due_soon_wakes_who_waits(open_driver: Open, driver: RedisDriver, server: Any) -> None:
    waiting = Waiting(server, intake(driver))
    open_driver().put([message(1, delay=0.4)], deadline=PATIENCE)
    assert numbers(waiting.result()) == [1]


@pytest.mark.usefixtures("never_looks")
def test_a_worker_whose_bell_is_cut_hears_the_next_ring(
    open_driver: Open, driver: RedisDriver, server: Any
) -> None:
    waiting = Waiting(server, intake(driver))
    server.client_kill_filter(_type="pubsub")
    until(lambda: server.client_list(_type="pubsub"))
    put(open_driver(), 1)
    assert numbers(waiting.result()) == [1]


@pytest.mark.usefixtures("never_looks")
def test_a_worker_that_is_killed_is_not_rung_in_vain(
    open_driver: Open, driver: RedisDriver, server: Any
) -> None:
    """Its name is among those that wait, but nobody listens any more."""
    Waiting(server, intake(driver, worker="gone"))
    (gone,) = server.smembers("callboard:{.}:idle")
    server.srem("callboard:{.}:idle:mail.high", gone)
    server.sadd("callboard:{.}:idle", "dead")
    server.sadd("callboard:{.}:idle:mail.high", "dead")
    waiting = Waiting(server, intake(open_driver(), worker="alive"))
    put(driver, 1, 2)
    assert numbers(waiting.result()) == [1, 2]
    assert not server.sismember("callboard:{.}:idle", "dead")


# -- claims, connections and leases


def kill_clients(server: Any) -> None:
    server.client_kill_filter(_type="normal", skipme=True)


def test_a_fetch_whose_answer_is_lost_claims_nothing_for_ever(
    driver: RedisDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(driver, 1, 2, 3)
    hand = intake(driver)
    hand.fetch(1, 0)  # nothing but to be known
    assert isinstance(hand, RedisIntake)
    receive, cut = Link._receive, threading.Event()

    def deaf(connection: Any, until: float) -> Any:
        answer = receive(connection, until)
        if not cut.is_set() and isinstance(answer, list) and len(answer) == 6 and answer[4]:
            cut.set()
            raise redis.exceptions.ConnectionError("Connection reset by peer")
        return answer

    held = take(hand, 0)
    monkeypatch.setattr(Link, "_receive", staticmethod(deaf))
    held = take(hand, 2)
    assert cut.is_set()
    assert not any(delivery.redelivered for delivery in held)


def test_claims_outlive_closed_connections(driver: RedisDriver, server: Any) -> None:
    put(driver, *range(20))
    hand = intake(driver)
    held = take(hand, 10)
    for delivery in held[:5]:
        kill_clients(server)
        assert hand.holds(delivery)
        hand.ack(delivery)
    kill_clients(server)
    assert hand.flush(PATIENCE)
    assert all(hand.holds(delivery) for delivery in held[5:])
    counts = driver.counts(["mail.high"])["mail.high"]
    assert (counts.ready, counts.claimed) == (10, 5)
    kill_clients(server)
    hand.move(held[5], message(77, "mail.low"))
    kill_clients(server)
    hand.give_back(held[6:7])
    hand.close()
    other = intake(driver)
    assert sorted(numbers(take(other, 14))) == [6, 7, 8, 9, *range(10, 20)]


def test_what_is_put_while_connections_are_closed_is_there_once(driver: RedisDriver, server: Any) -> None:
    stop = threading.Event()

    def kill_on() -> None:
        while not stop.wait(0.01):
            kill_clients(server)

    killer = threading.Thread(target=kill_on)
    killer.start()
    try:
        for number in range(0, 300, 3):
            put(driver, number, number + 1, number + 2)
    finally:
        stop.set()
        killer.join()
    assert numbers(take(intake(driver), 300)) == list(range(300))
    assert driver.counts(["mail.high"])["mail.high"].ready == 0


def test_a_claim_that_a_crash_undid_goes_on_if_nobody_else_has_it(driver: RedisDriver, server: Any) -> None:
    """A Redis that is killed may have forgotten the last second."""
    put(driver, 1, 2)
    hand = intake(driver, worker="w")
    first, second = take(hand, 2)
    (claims,) = server.keys("callboard:{.}:claims:*")
    for token, claim in server.hgetall(claims).items():
        server.zadd("callboard:{.}:ready:mail.high", {token: claim.split()[0]})
    server.delete(claims)
    other = intake(driver, worker="other", budget=1)
    taken = take(other, 1)
    assert numbers(taken) == [1]
    kill_clients(server)
    until(lambda: not hand.holds(first))
    assert hand.holds(second)
    hand.ack(first)  # refused: it is another's by now
    hand.ack(second)
    assert hand.flush(PATIENCE)
    counts = driver.counts(["mail.high"])["mail.high"]
    assert (counts.ready, counts.claimed) == (0, 1)
    assert other.holds(taken[0])
    assert server.hlen("callboard:{.}:messages") == 1


def test_a_slow_worker_keeps_its_claims(open_driver: Open) -> None:
    """It is busy for three leases, and fetches nothing; another one watches."""
    busy, watching = open_driver(lease=0.6), open_driver(lease=0.6)
    put(busy, 1)
    hand = intake(busy, worker="slow")
    held = take(hand, 1)
    assert intake(watching, worker="watching").fetch(1, 1.8) == []
    assert hand.holds(held[0])
    hand.ack(held[0])
    assert hand.flush(PATIENCE)
    assert watching.counts(["mail.high"])["mail.high"].claimed == 0


def test_a_worker_that_was_silent_too_long_has_lost_its_claims(
    open_driver: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, watching = open_driver(lease=0.5), open_driver(lease=0.5)
    put(frozen, 1, 2, 3)
    hand = intake(frozen, worker="frozen")
    held = take(hand, 3)
    other = intake(watching, worker="watching")
    with monkeypatch.context() as ice:  # its connections stand, and nothing is said on them
        ice.setattr(hand, "_applying", _Locked())
        again = take(other, 3)
    assert numbers(again) == [1, 2, 3]
    assert all(delivery.redelivered for delivery in again)
    assert not any(hand.holds(delivery) for delivery in held)
    hand.ack(held[0])
    with pytest.raises(PutError, match="the claim is gone"):
        hand.move(held[1], message(9, "mail.low"))
    hand.give_back(held[2:])
    assert hand.flush(PATIENCE)
    assert all(other.holds(delivery) for delivery in again)
    counts = watching.counts(["mail.high", "mail.low"])
    assert (counts["mail.high"].claimed, counts["mail.low"].ready) == (3, 0)


class _Locked:
    """A lock that a frozen process never gets."""

    def __enter__(self) -> None:
        raise BrokerUnavailable("frozen")

    def __exit__(self, *_: object) -> None:
        pass

    def acquire(self, timeout: float = -1) -> bool:
        del timeout
        return False


def test_a_move_is_refused_when_the_claim_went_unnoticed(driver: RedisDriver, server: Any) -> None:
    put(driver, 1)
    hand = intake(driver)
    (held,) = take(hand, 1)
    (claims,) = server.keys("callboard:{.}:claims:*")
    server.delete(claims)
    assert hand.holds(held)  # it can't know yet
    with pytest.raises(PutError, match="the claim is gone") as caught:
        hand.move(held, message(2, "mail.low"))
    assert len(caught.value.not_queued) == 1
    assert not hand.holds(held)
    assert driver.counts(["mail.low"])["mail.low"].ready == 0


def test_an_outage_longer_than_the_lease_costs_nobody_a_claim(
    own_redis: PrivateRedis, open_driver: Open
) -> None:
    """Who comes back first finds all the others silent, and waits for them."""
    drivers = [open_driver(own_redis.url, lease=1.0) for _ in range(3)]
    put(drivers[0], *range(9))
    hands = [intake(driver, worker=f"w{n}", budget=3) for n, driver in enumerate(drivers)]
    held = [take(hand, 3) for hand in hands]
    own_redis.kill()
    time.sleep(1.5)
    own_redis.start()
    until(lambda: drivers[0].counts(["mail.high"])["mail.high"].consumers == 3)
    assert hands[0].fetch(10, 2.5) == []  # its budget is used up; but it watches
    for hand, deliveries in zip(hands, held, strict=True):
        assert all(hand.holds(delivery) for delivery in deliveries)
        for delivery in deliveries:
            hand.ack(delivery)
        assert hand.flush(PATIENCE)
    counts = drivers[0].counts(["mail.high"])["mail.high"]
    assert (counts.ready, counts.claimed) == (0, 0)


def test_an_unstarted_job_is_not_started_while_redis_can_not_say_whose_it_is(
    own_redis: PrivateRedis, open_driver: Open
) -> None:
    driver = open_driver(own_redis.url, lease=0.5)
    put(driver, 1, 2)
    hand = intake(driver)
    first, second = take(hand, 2)
    own_redis.kill()
    until(lambda: not hand.holds(first))
    own_redis.start()
    assert hand.flush(PATIENCE)
    until(lambda: hand.holds(second))
    assert numbers(take(hand, 1)) == [1]


# -- the server's moods


def test_scripts_that_redis_has_forgotten_are_loaded_again(driver: RedisDriver, server: Any) -> None:
    put(driver, 1)
    hand = intake(driver)
    for number in range(2, 6):
        server.script_flush()
        held = take(hand, 1)
        hand.ack(held[0])
        put(driver, number)
        server.script_flush()
        assert hand.flush(PATIENCE)
    assert driver.counts(["mail.high"])["mail.high"].ready == 1


class Loading(socketserver.ThreadingTCPServer):
    """Says for a while that it reads its file, as a Redis does that has just been started."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _OneConnection)
        self.refusals = refusals
        self.answered = 0

    def answer(self, command: list[bytes]) -> bytes:
        if command[0] != b"EVALSHA":
            return b"+OK\r\n" if command[0] == b"CLIENT" else b"*0\r\n"
        if self.refusals:
            self.refusals -= 1
            return b"-LOADING it is loading the dataset in memory\r\n"
        self.answered += 1
        return b"$0\r\n\r\n"


class _OneConnection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Loading)
        while head := self.rfile.readline():
            command = []
            for _ in range(int(head[1:])):
                size = int(self.rfile.readline()[1:])
                command.append(self.rfile.read(size + 2)[:-2])
            if command[0] == b"INFO":
                self.wfile.write(b"$26\r\nredis_version:7\r\nloading:1\r\n")
            else:
                self.wfile.write(self.server.answer(command))


def test_a_server_that_is_still_loading_is_asked_again(open_driver: Open) -> None:
    with Loading(refusals=3) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver = open_driver(f"redis://127.0.0.1:{server.server_address[1]}/0")
        put(driver, 1)
        put(driver, 2)
        assert (server.refusals, server.answered) == (0, 2)
        driver.close()
        server.shutdown()


def test_a_put_waits_until_a_failover_is_over(redis_server: PrivateRedis, driver: RedisDriver) -> None:
    put(driver, 1)
    with redis_server.read_only():
        with pytest.raises(PutError, match="can't do it just now") as caught:
            driver.put([message(2)], deadline=0.2)
        assert len(caught.value.not_queued) == 1
        sender = threading.Thread(target=put, args=[driver, 3])
        sender.start()
        time.sleep(0.1)
    sender.join(PATIENCE)
    assert numbers(driver.peek("mail.high")) == [1, 3]


def test_a_put_to_nobody_says_so_within_its_deadline(open_driver: Open) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        driver = open_driver(f"redis://ann:secret@127.0.0.1:{port}/0")
        started = time.monotonic()
        with pytest.raises(PutError, match="connection refused; is it running") as caught:
            driver.put([message(1)], deadline=0.3)
        assert 0.2 < time.monotonic() - started < 5
        assert "secret" not in str(caught.value)
        assert len(caught.value.not_queued) == 1
        for ask in (driver.queues, driver.ping, partial(driver.counts, ["mail.high"])):
            with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
                ask()


def test_a_put_to_a_server_that_does_not_answer_is_unknown(
    own_redis: PrivateRedis, open_driver: Open
) -> None:
    driver = open_driver(own_redis.url)
    put(driver, 1)
    with own_redis.frozen():
        started = time.monotonic()
        with pytest.raises(PutError, match="doesn't answer") as caught:
            driver.put([message(2)], deadline=0.5)
        assert time.monotonic() - started < 5
        assert len(caught.value.unknown) == 1
        with pytest.raises(PutError) as caught:  # on a new connection, which gets no answer to its greeting
            driver.put([message(3)], deadline=0.3)
        assert len(caught.value.not_queued) == 1
    put(driver, 4)
    assert set(numbers(driver.peek("mail.high"))) - {2} == {1, 4}


def test_a_put_that_was_given_up_comes_never_after_a_later_one(
    own_redis: PrivateRedis, open_driver: Open
) -> None:
    """It may have been done while nobody listened; what may not be is that it is done when all is said."""
    driver = open_driver(own_redis.url)
    put(driver, 1)
    with own_redis.frozen(), pytest.raises(PutError):
        driver.put([message(2)], deadline=0.2)
    put(driver, 3)
    found = numbers(driver.peek("mail.high"))
    assert found in ([1, 3], [1, 2, 3])


def test_out_of_memory_is_told_at_once_and_workers_go_on(driver: RedisDriver, server: Any) -> None:
    put(driver, *range(50))
    server.config_set("maxmemory", 1)
    started = time.monotonic()
    with pytest.raises(PutError, match="'maxmemory'") as caught:
        driver.put([message(99)], deadline=PATIENCE)
    assert time.monotonic() - started < PATIENCE / 2
    assert len(caught.value.not_queued) == 1
    with pytest.raises(BrokerUnavailable, match="'maxmemory'"):
        driver.ping()
    hand = intake(driver)
    held = take(hand, 50)
    hand.move(held[0], message(100, "mail.dead"))
    for delivery in held[1:]:
        hand.ack(delivery)
    assert hand.flush(PATIENCE)
    assert driver.counts(["mail.dead"])["mail.dead"].ready == 1


def test_a_redis_that_may_evict_jobs_is_refused(open_driver: Open, server: Any) -> None:
    server.config_set("maxmemory", "100mb")
    server.config_set("maxmemory-policy", "allkeys-lru")
    driver = open_driver()
    with pytest.raises(PutError, match=r"may evict jobs .* set maxmemory-policy to noeviction") as caught:
        driver.put([message(1)], deadline=PATIENCE)
    assert len(caught.value.not_queued) == 1
    with pytest.raises(BrokerUnavailable, match="may evict jobs"):
        driver.ping()
    with structlog.testing.capture_logs() as logs:
        assert intake(driver).fetch(1, 0.1) == []
    assert any("may evict jobs" in str(entry.get("reason")) for entry in logs)


def test_a_redis_that_writes_nothing_down_is_warned_of_once(
    open_driver: Open, own_redis: PrivateRedis
) -> None:
    driver = open_driver()
    with structlog.testing.capture_logs() as logs:
        put(driver, 1)
        take(intake(driver), 1)
    assert [entry["event"] for entry in logs] == ["redis_keeps_nothing"]
    with structlog.testing.capture_logs() as logs:
        put(open_driver(own_redis.url), 1)
    assert logs == []


def test_a_wrong_password_is_told_at_once_and_not_shown(open_driver: Open, server: Any) -> None:
    url = server.connection_pool.connection_kwargs
    server.config_set("requirepass", "right")
    for login in (":wrong@", "ann:wrong@", ""):
        driver = open_driver(f"redis://{login}{url['host']}:{url['port']}/0")
        started = time.monotonic()
        with pytest.raises(PutError, match="check the user and password") as caught:
            driver.put([message(1)], deadline=PATIENCE)
        assert time.monotonic() - started < PATIENCE / 2
        assert "wrong" not in str(caught.value)
    put(open_driver(f"redis://:right@{url['host']}:{url['port']}/0"), 1)


def test_a_user_with_few_permissions_can_do_everything(open_driver: Open, server: Any) -> None:
    url = server.connection_pool.connection_kwargs
    server.execute_command(
        "ACL SETUSER callboard reset on >secret ~callboard:* &callboard:* "
        "+@read +@write +@scripting +@pubsub +@connection +info +time -@dangerous"
    )
    try:
        driver = open_driver(f"redis://callboard:secret@{url['host']}:{url['port']}/0")
        put(driver, 1, 2, 3)
        driver.ping()
        hand = intake(driver)
        held = take(hand, 2)
        hand.ack(held[0])
        hand.move(held[1], message(9, "mail.dead"))
        hand.close()
        assert driver.walk("mail.dead", lambda found: Verdict.KEEP).kept == 1
        assert driver.queues() == ["mail.dead", "mail.high"]
        assert driver.purge("mail.high") == 1
        server.execute_command("ACL SETUSER callboard -@scripting")
        with pytest.raises(PutError, match="grant the user"):
            driver.put([message(1)], deadline=PATIENCE)
    finally:
        server.execute_command("ACL DELUSER callboard")


def test_connections_that_redis_closes_for_being_idle_are_no_outage(driver: RedisDriver, server: Any) -> None:
    put(driver, 1)
    driver.counts(["mail.high"])
    kill_clients(server)
    with structlog.testing.capture_logs() as logs:
        put(driver, 2)
        assert driver.counts(["mail.high"])["mail.high"].ready == 2
    assert logs == []


# -- ways to connect


def free_port() -> int:
    """One below those that outgoing connections have, which may be taken at any moment."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def test_a_server_is_reached_through_a_socket(
    installed: Installed, tmp_path: Path, open_driver: Open
) -> None:
    path = tmp_path / "redis.sock"
    with installed(lambda: PrivateRedis(options={"unixsocket": str(path)})):
        driver = open_driver(f"unix://{path}?db=3")
        put(driver, 1)
        assert numbers(take(intake(driver), 1)) == [1]


def test_tls_trusts_only_a_certificate_that_is_signed_for_the_host(
    redis_server: PrivateRedis, server: Any, tmp_path: Path, open_driver: Open
) -> None:
    ours, others = trustme.CA(), trustme.CA()
    certificate = ours.issue_cert("localhost")
    for name, blob in {
        "ca.pem": ours.cert_pem,
        "other.pem": others.cert_pem,
        "key.pem": certificate.private_key_pem,
        "cert.pem": certificate.cert_chain_pems[0],
    }.items():
        blob.write_to_path(str(tmp_path / name))
    port = free_port()
    if not server.config_get("tls-port"):
        pytest.skip("this Redis was built without TLS")
    server.config_set(
        "tls-cert-file", str(tmp_path / "cert.pem"), "tls-key-file", str(tmp_path / "key.pem"),
        "tls-ca-cert-file", str(tmp_path / "ca.pem"), "tls-auth-clients", "no", "tls-port", port,
    )  # fmt: skip
    try:
        driver = open_driver(f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}")
        put(driver, 1)
        assert numbers(take(intake(driver), 1)) == [1]
        for url in (
            f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path / 'other.pem'}",
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}",
        ):
            with pytest.raises(PutError, match="its certificate isn't trusted"):
                open_driver(url).put([message(1)], deadline=0.5)
    finally:
        server.config_set("tls-port", 0)


def test_namespaces_do_not_meet_and_have_one_hash_tag_each(open_driver: Open, server: Any) -> None:
    shop, plain = open_driver(namespace="shop"), open_driver()
    put(shop, 1)
    shop.put([message(5, delay=60.0)], deadline=PATIENCE)
    put(plain, 2)
    hand = intake(shop)
    assert numbers(take(hand, 1)) == [1]
    assert intake(plain).fetch(10, 0) != []
    shop.walk("mail.dead", lambda found: Verdict.KEEP)
    keys = [key.decode() for key in server.keys("*")]
    assert {key.partition("}")[0] for key in keys} == {"callboard:{shop", "callboard:{."}


def test_a_cluster_has_a_namespace_in_one_slot_and_any_node_leads_there(
    installed: Installed, open_driver: Open
) -> None:
    buses = [str(free_port()), str(free_port())]

    def node(bus: str) -> PrivateRedis:
        return PrivateRedis(options={"cluster-enabled": "yes", "cluster-port": bus})

    with installed(partial(node, buses[0])) as one, installed(partial(node, buses[1])) as two:
        ask: list[Any] = [redis.Redis.from_url(server.url, protocol=2) for server in (one, two)]
        ask[0].execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        ask[1].execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        ask[0].execute_command("CLUSTER MEET", "127.0.0.1", two.port, buses[1])
        for client in ask:
            until(partial(_sees_both, client))
        for namespace in ("", "a", "b"):  # which two nodes share
            for server in (one, two):
                driver = open_driver(server.url, namespace=namespace)
                put(driver, 1, 2)
                hand = intake(driver)
                held = take(hand, 2)
                hand.ack(held[0])
                hand.move(held[1], message(3, delay=0.2))
                assert numbers(take(hand, 1)) == [3]
                hand.close()
                assert driver.purge("mail.high") == 1
        assert all(client.dbsize() for client in ask)
        for client in ask:
            client.close()


def _sees_both(client: Any) -> bool:
    info = client.execute_command("CLUSTER INFO")
    text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return bool(text["cluster_known_nodes"] == "2" and text["cluster_slots_assigned"] == "16384")


# -- asking and changing


def test_a_purge_drops_much_and_what_one_that_was_cut_short_left(driver: RedisDriver, server: Any) -> None:
    driver.put(
        [message(n) for n in range(2500)] + [message(n, delay=60.0) for n in range(500)], deadline=PATIENCE
    )
    assert driver.purge("mail.high") == 3000
    assert server.hlen("callboard:{.}:messages") == 0
    put(driver, 1, 2)
    server.rename("callboard:{.}:ready:mail.high", "callboard:{.}:purge:mail.high")
    put(driver, 3)
    assert driver.purge("mail.high") == 1
    assert server.hlen("callboard:{.}:messages") == 0
    assert not server.exists("callboard:{.}:next")


def test_a_walk_that_lost_its_lock_changes_nothing_more(driver: RedisDriver, server: Any) -> None:
    put(driver, *range(10))

    def decide(found: StoredMessage) -> Verdict:
        if int(found.body) == 5:
            server.set("callboard:{.}:walk:mail.high", "another")
        return Verdict.DISCARD

    with pytest.raises(BrokerUnavailable, match="lost its lock"):
        driver.walk("mail.high", decide)
    assert driver.counts(["mail.high"])["mail.high"].ready == 10
    server.delete("callboard:{.}:walk:mail.high")
    assert driver.walk("mail.high", lambda found: Verdict.DISCARD).discarded == 10


def test_a_walk_leaves_alone_what_was_claimed_meanwhile(open_driver: Open, driver: RedisDriver) -> None:
    put(driver, *range(4))
    hand = intake(open_driver(), budget=2)

    def decide(found: StoredMessage) -> Verdict:
        if int(found.body) == 3:
            take(hand, 2)
        return Verdict.DISCARD

    report = driver.walk("mail.high", decide)
    assert (report.seen, report.discarded, report.kept) == (4, 2, 2)
    assert driver.counts(["mail.high"])["mail.high"].claimed == 2


def test_a_million_far_future_jobs_are_nothing_to_a_worker(driver: RedisDriver) -> None:
    """Twenty thousand here; the script looks at the first alone, however many there are."""
    driver.put([message(n, delay=3600.0 + n) for n in range(20_000)], deadline=PATIENCE)
    driver.put([message(n, delay=0.3) for n in range(100)], deadline=PATIENCE)
    hand = intake(driver, budget=100)
    assert sorted(numbers(take(hand, 100))) == list(range(100))
    counts = driver.counts(["mail.high"])["mail.high"]
    assert (counts.ready, counts.delayed, counts.claimed) == (0, 20_000, 100)


def test_after_the_clock_of_the_server_stepped_back_places_go_on(driver: RedisDriver, server: Any) -> None:
    put(driver, 1)
    server.set("callboard:{.}:place", int(time.time() * 1e6) + 3_600_000_000)
    put(driver, 2, 3)
    put(driver, 4)
    assert numbers(take(intake(driver), 4)) == [1, 2, 3, 4]


def test_what_is_left_after_all_is_done_is_small(driver: RedisDriver, server: Any) -> None:
    put(driver, *range(300))
    hand = intake(driver)
    for delivery in take(hand, 300):
        hand.ack(delivery)
    hand.close()
    left = {key.decode().partition("}:")[2].partition(":")[0] for key in server.keys("*")}
    assert left == {"place", "queues", "sender"} | ({"watch"} & left)
    (sender,) = server.keys("*sender:*")
    assert 0 < server.ttl(sender) <= 900


# -- forks


FORKS = """
import os, sys
from callboard.brokers.driver import IntakeOptions, Outgoing
from callboard.brokers.redis import RedisDriver

driver = RedisDriver(sys.argv[1])

def put(number):
    driver.put([Outgoing("mail.high", b"%d" % number, "job")], deadline=30)

def open_intake(worker):
    return driver.open_intake(IntakeOptions(queues=["mail.high"], budget=10, worker=worker))

put(1)
hand = open_intake("parent")
(held,) = hand.fetch(10, 30)
driver.counts(["mail.high"])
pid = os.fork()
if pid == 0:
    assert not hand.holds(held)
    hand.ack(held)
    hand.close()
    put(2)
    assert [found.body for found in open_intake("child").fetch(10, 30)] == [b"2"]
    assert driver.counts(["mail.high"])["mail.high"].claimed == 2
    driver.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert hand.holds(held)
hand.ack(held)
assert hand.flush(30)
put(3)
print([found.body for found in driver.peek("mail.high")])
"""


def test_a_forked_child_opens_connections_of_its_own(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, redis_url],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[b'2', b'3']"], done.stdout + done.stderr
