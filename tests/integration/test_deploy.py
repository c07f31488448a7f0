"""The users that deploy/ gives out, on a real RabbitMQ and a real Redis: what each may do, and what not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest
import redis
import redis.exceptions
import structlog

from callboard.brokers import open_driver
from callboard.brokers.driver import Driver, Intake, IntakeOptions, PutError, Verdict
from callboard.errors import BrokerUnavailable
from callboard.servers import PrivateRabbitmq, PrivateRedis
from callboard.settings import Settings
from deploy import credentials
from tests.closing import closing_all
from tests.deliveries import message, take

PATIENCE = 60.0
DEPLOY = Path(credentials.__file__).parent

Installed = Callable[[Callable[[], Any]], Any]
Open = Callable[[str], Driver]


@pytest.fixture
def open_one() -> Iterator[Open]:
    """Opens drivers that are closed at the end."""
    with closing_all(open_driver) as open_it:
        yield open_it


def urls(folder: Path, server: str) -> dict[str, str]:
    """The address of a server for each role, out of the role's file."""
    return {role: dict(line.split("=", 1) for line in (folder / f"{role}.env").read_text().splitlines())[server]
            for role in ("worker", "producer")}  # fmt: skip


def intake(driver: Driver, queue: str) -> Intake:
    return driver.open_intake(IntakeOptions(queues=(queue,), budget=10, worker="test"))


# -- RabbitMQ


@pytest.fixture(scope="module")
def rabbitmq_at(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A fresh node that loads the definitions when it starts, as deploy/rabbitmq/rabbitmq.conf tells it to, and the
    folder of credentials."""
    folder = tmp_path_factory.mktemp("secrets")
    conf = dict(
        line.split(" = ", 1)
        for line in (DEPLOY / "rabbitmq" / "rabbitmq.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )
    conf["load_definitions"] = str(folder / "definitions.json")
    del conf["disk_free_limit.absolute"]  # of the machine that the tests run on
    node = installed(lambda: PrivateRabbitmq(settings=conf))
    credentials.make(folder, credentials.Addresses(broker=f"amqp://127.0.0.1:{node.port}"))
    with node:
        yield node, folder


@pytest.fixture(scope="module")
def rabbitmq_urls(rabbitmq_at: tuple[Any, Path]) -> dict[str, str]:
    return urls(rabbitmq_at[1], "CALLBOARD_BROKER_URL")


@pytest.fixture
def worker(open_one: Open, rabbitmq_urls: dict[str, str]) -> Driver:
    """The driver of a worker that has created what it needs."""
    driver = open_one(rabbitmq_urls["worker"])
    for queue in ("mail.high", "mail.dead", "callboard.quarantine"):
        driver.declare(queue)
    driver.create_queues()
    driver.purge("mail.high")
    return driver


def test_guest_is_gone(rabbitmq_at: tuple[PrivateRabbitmq, Path]) -> None:
    node, _ = rabbitmq_at
    users = {line.split("\t")[0] for line in node.ctl("list_users", "--no-table-headers").splitlines()}
    assert users == {"callboard-worker", "callboard-producer", "callboard-monitor"}
    vhosts = node.ctl("list_vhosts", "--no-table-headers").split()
    assert vhosts == ["callboard"]


def test_a_producer_sends_now_and_for_later_and_logs_nothing(
    open_one: Open, worker: Driver, rabbitmq_urls: dict[str, str]
) -> None:
    producer = open_one(rabbitmq_urls["producer"])
    with structlog.testing.capture_logs() as logs:
        producer.put([message(1), message(2, delay=0.1)], deadline=PATIENCE)
        producer.ping()
    assert logs == []
    hand = intake(worker, "mail.high")
    held = take(hand, 2)
    assert {delivery.body for delivery in held} == {b"1", b"2"}
    for delivery in held:
        hand.ack(delivery)
    hand.close()


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda channel: channel.basic_get("mail.high"), id="fetch a job"),
        pytest.param(lambda channel: channel.basic_consume("mail.high", print), id="consume"),
        pytest.param(lambda channel: channel.queue_purge("mail.high"), id="purge"),
        pytest.param(lambda channel: channel.queue_delete("mail.high"), id="delete a queue"),
        pytest.param(lambda channel: channel.queue_declare("spy"), id="create a queue"),
        pytest.param(lambda channel: channel.exchange_delete("callboard.delay.03"), id="delete an exchange"),
        pytest.param(
            lambda channel: channel.queue_bind("mail.high", "callboard.delay.delivery"), id="bind a queue"
        ),
    ],
)
def test_a_producer_can_only_send(
    attempt: Callable[[Any], object], worker: Driver, rabbitmq_urls: dict[str, str]
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_urls["producer"]))
    try:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            attempt(connection.channel())
        assert caught.value.reply_code == 403
    finally:
        connection.close()


def test_a_producer_cannot_look_at_dead_letters(
    open_one: Open, worker: Driver, rabbitmq_urls: dict[str, str]
) -> None:
    worker.put([message(1, "mail.dead")], deadline=PATIENCE)
    with pytest.raises(BrokerUnavailable, match="doesn't permit this to 'callboard-producer'"):
        open_one(rabbitmq_urls["producer"]).peek("mail.dead")
    worker.purge("mail.dead")


def test_a_worker_does_its_whole_job(worker: Driver) -> None:
    worker.put([message(1), message(2), message(3, delay=0.1)], deadline=PATIENCE)
    hand = intake(worker, "mail.high")
    first, second, third = take(hand, 3)
    hand.ack(first)
    hand.move(second, message(2, delay=0.1))  # a retry
    hand.move(third, message(3, "mail.dead"))
    hand.ack(take(hand, 1)[0])
    hand.close()
    report = worker.walk("mail.dead", lambda found: message(3))  # a replay
    assert report.moved == 1
    assert worker.counts(["mail.high"])["mail.high"].ready == 1
    assert worker.purge("mail.high") == 1


def test_a_worker_cannot_touch_another_vhost(
    open_one: Open, rabbitmq_at: tuple[PrivateRabbitmq, Path], rabbitmq_urls: dict[str, str]
) -> None:
    node, _ = rabbitmq_at
    node.ctl("add_vhost", "other")
    try:
        parts = urlsplit(rabbitmq_urls["worker"])
        elsewhere = open_one(parts._replace(path="/other").geturl())
        with pytest.raises(PutError, match="doesn't let 'callboard-worker' into the vhost 'other'"):
            elsewhere.put([message(1)], deadline=PATIENCE)
    finally:
        node.ctl("delete_vhost", "other")  # others look at what vhosts there are


def test_importing_the_definitions_as_they_lie_in_the_repository_lets_nobody_in(
    rabbitmq: PrivateRabbitmq, open_one: Open
) -> None:
    rabbitmq.ctl("import_definitions", str(DEPLOY / "rabbitmq" / "definitions.json"))
    try:
        for password in ("", "guest"):
            url = f"amqp://callboard-worker:{password}@127.0.0.1:{rabbitmq.port}/callboard"
            with pytest.raises(PutError, match="refuses the user 'callboard-worker'"):
                open_one(url).put([message(1)], deadline=PATIENCE)
    finally:
        for user in ("worker", "producer", "monitor"):
            rabbitmq.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"callboard-{user}">>, <<"test">>)')
        rabbitmq.delete_vhost("callboard")


# -- Redis


@pytest.fixture(scope="module")
def redis_urls(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Redis with the configuration and the users of deploy/redis, and its address for each role."""
    folder = tmp_path_factory.mktemp("secrets")
    conf = dict(
        line.split(" ", 1)
        for line in (DEPLOY / "redis" / "redis.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )
    conf |= {"dir": str(folder), "aclfile": str(folder / "users.acl")}
    server = installed(
        lambda: _RedisOfUsers(options={name: value.strip('"') for name, value in conf.items()})
    )
    credentials.make(folder, credentials.Addresses(store=f"redis://127.0.0.1:{server.port}"))
    with server:
        yield urls(folder, "CALLBOARD_STORE_URL")


class _RedisOfUsers(PrivateRedis):
    """One that doesn't answer who isn't known to it."""

    def _answers(self) -> bool:
        return self._ask("AUTH callboard-health any") == "+OK"


def test_the_driver_works_as_the_redis_user_of_workers(open_one: Open, redis_urls: dict[str, str]) -> None:
    driver = open_one(redis_urls["worker"])
    with structlog.testing.capture_logs() as logs:
        driver.put([message(1), message(2), message(3, delay=0.1)], deadline=PATIENCE)
        driver.ping()
        hand = intake(driver, "mail.high")
        first, second, third = take(hand, 3)
        hand.ack(first)
        hand.move(second, message(2, "mail.dead"))
        hand.move(third, message(3, delay=0.1))
        hand.ack(take(hand, 1)[0])
        hand.close()
        assert driver.walk("mail.dead", lambda found: Verdict.KEEP).kept == 1
        assert driver.purge("mail.dead") == 1
        assert driver.queues() == ["mail.dead", "mail.high"]
    assert logs == []


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET maxmemory 1", "ACL LIST", "ACL SETUSER eve on",
        "MONITOR", "SHUTDOWN NOSAVE", "SAVE", "REPLICAOF 127.0.0.1 1", "CLIENT KILL TYPE normal",
        "SCRIPT FLUSH", "FUNCTION FLUSH", "MODULE LIST", "SET theirs 1", "GET theirs", "PUBLISH theirs 1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["worker", "producer"])
def test_nobody_may_do_more_in_redis(role: str, command: str, redis_urls: dict[str, str]) -> None:
    with (
        redis.Redis.from_url(redis_urls[role]) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command.split())


def test_a_producer_can_send_over_redis_and_read_nothing(open_one: Open, redis_urls: dict[str, str]) -> None:
    worker, producer = open_one(redis_urls["worker"]), open_one(redis_urls["producer"])
    with structlog.testing.capture_logs() as logs:
        producer.put([message(1), message(2, delay=0.1)], deadline=PATIENCE)
    assert logs == []
    with redis.Redis.from_url(redis_urls["producer"]) as client:
        for command in (
            "HGETALL callboard:{.}:messages",
            "ZPOPMIN callboard:{.}:ready:mail.high",
            "SSUBSCRIBE callboard:x",
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
    with pytest.raises(BrokerUnavailable, match=r"refuses: .* can't access"):
        producer.peek("mail.high")
    hand = intake(worker, "mail.high")
    for delivery in take(hand, 2):
        hand.ack(delivery)
    hand.close()


def test_redis_lets_nobody_in_without_a_password(redis_urls: dict[str, str]) -> None:
    where = urlsplit(redis_urls["worker"])
    with (
        redis.Redis(host=where.hostname or "", port=where.port or 0, protocol=2) as nobody,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        nobody.ping()
    with redis.Redis.from_url(
        f"redis://callboard-health:any@{where.hostname}:{where.port}", protocol=2
    ) as health:
        assert health.execute_command("PING")
        with pytest.raises(redis.exceptions.NoPermissionError):
            health.get("callboard:{.}:messages")


# -- together


@pytest.fixture
def settings_of(
    rabbitmq_at: tuple[Any, Path], rabbitmq_urls: dict[str, str], redis_urls: dict[str, str], tmp_path: Path
) -> Callable[[str], dict[str, str]]:
    """The environment of a container: what credentials.py hands to a role, and what the manifests add."""
    keys = dict(line.split("=", 1) for line in (rabbitmq_at[1] / "worker.env").read_text().splitlines())
    machine = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}

    def settings(role: str) -> dict[str, str]:
        return machine | {
            "CALLBOARD_ENVIRONMENT": "production",
            "CALLBOARD_BROKER_URL": rabbitmq_urls[role],
            "CALLBOARD_STORE_URL": redis_urls[role],
            "CALLBOARD_SIGNING_KEYS": keys["CALLBOARD_SIGNING_KEYS"],
            "CALLBOARD_STORAGE_URL": f"file:{tmp_path}",
            "CALLBOARD_LOG_FORMAT": "json",
            "CALLBOARD_SEND_DEADLINE": str(PATIENCE),
        }

    return settings


def callboard(settings: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "callboard.cli", *arguments]
    done = subprocess.run(
        command, cwd=DEPLOY.parent, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return bool(found.status == 200)
    except OSError:
        return False


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that stays ours: bound, not listened on, and open to one who reuses addresses, as the worker does."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield reserved.getsockname()[1]


def test_containers_work_together_with_the_rights_that_they_have(
    settings_of: Callable[[str], dict[str, str]], tmp_path: Path, free_port: int
) -> None:
    callboard(settings_of("worker"), "queues", "create")
    sent = callboard(settings_of("producer"), "enqueue", "clean-generated-files", "--delay", "1s", "--json")
    log = tmp_path / "log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "callboard.cli",
                "worker",
                "--queues",
                "*.medium,*.low",
                "--processes",
                "1",
            ],
            cwd=DEPLOY.parent,
            env=settings_of("worker") | {"CALLBOARD_WORKER_HTTP": f"127.0.0.1:{free_port}"},
            stdout=output,
            stderr=output,
        )
    try:
        for path in ("/healthz", "/readyz"):
            eventually(partial(serves, f"http://127.0.0.1:{free_port}{path}"), log)
        # It succeeds only if the job did.
        callboard(
            settings_of("worker"), "jobs", "watch", json.loads(sent)["id"], "--timeout", f"{PATIENCE:.0f}"
        )
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE) == 0, log.read_text()
    assert not re.search("(?i)permi|access_refused|can't access|not_declared", log.read_text())


def eventually(holds: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


# -- the files


def test_credentials_are_never_made_twice_and_passwords_are_for_their_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert credentials.main([str(tmp_path / "new")]) == 0
    before = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert credentials.main([str(tmp_path / "new")]) == 1
    assert "has credentials already" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == before
    for name in ("worker.env", "producer.env", "monitor.env"):
        assert (tmp_path / "new" / name).stat().st_mode & 0o077 == 0
    passwords = [
        value
        for name in ("worker.env", "producer.env", "monitor.env")
        for value in re.findall(r"(?:callboard-\w+:|PASSWORD=|KEYS=\d+:)([\w-]{43})", before[name])
    ]
    assert len(passwords) == 7
    assert (
        len(set(passwords)) == 4
    )  # RabbitMQ's and Redis's users of one name share one, and roles the signing key
    for name in ("definitions.json", "users.acl"):
        assert not any(password in before[name] for password in passwords)


def test_addresses_of_servers_elsewhere_are_completed(tmp_path: Path) -> None:
    broker = "amqps://one.test:5671,two.test:5671?cacertfile=/etc/callboard/tls/ca.crt"
    credentials.make(tmp_path, credentials.Addresses(broker=broker, store="rediss://keys.test:6380"))
    found = urls(tmp_path, "CALLBOARD_BROKER_URL")["producer"]
    hosts = "one.test:5671,two.test:5671/callboard"
    assert re.fullmatch(
        rf"amqps://callboard-producer:[\w-]{{43}}@{hosts}\?cacertfile=/etc/callboard/tls/ca\.crt", found
    )
    store = urls(tmp_path, "CALLBOARD_STORE_URL")["worker"]
    assert re.fullmatch(r"rediss://callboard-worker:[\w-]{43}@keys\.test:6380/0", store)
    Settings.load(environment="production", broker_url=found, store_url=store)
