from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest
import redis

from callboard.servers import PrivatePostgresql, PrivateRabbitmq, PrivateRedis, ServerFailed, ServerMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pika.adapters.blocking_connection import BlockingChannel

    from callboard.servers import PrivateServer

    Installed = Callable[[Callable[[], PrivateServer]], PrivateServer]

QUORUM = {"x-queue-type": "quorum"}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux ends orphans")


@contextlib.contextmanager
def amqp_channel(url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def publish_confirmed(channel: BlockingChannel, queue: str, body: bytes) -> None:
    channel.queue_declare(queue, durable=True, arguments=QUORUM)
    channel.confirm_delivery()
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def waits_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes() -> dict[int, int]:
    """Every process that is alive, with its parent."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    return parents


def family(ancestor: int) -> set[int]:
    parents = processes()
    members = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return members - {ancestor}


def test_a_confirmed_message_outlives_kill_and_restart_of_rabbitmq(own_rabbitmq: PrivateRabbitmq) -> None:
    with amqp_channel(own_rabbitmq.url) as channel:
        publish_confirmed(channel, "letters", b"a letter")
        own_rabbitmq.write_down_queues()
        own_rabbitmq.kill()
        with pytest.raises(pika.exceptions.AMQPError):
            channel.basic_get("letters")

    own_rabbitmq.start()
    own_rabbitmq.restart()

    with amqp_channel(own_rabbitmq.url) as channel:
        assert channel.basic_get("letters", auto_ack=True)[2] == b"a letter"


def test_each_test_has_a_vhost_of_its_own(rabbitmq: PrivateRabbitmq, amqp_url: str) -> None:
    with amqp_channel(amqp_url) as channel:
        publish_confirmed(channel, "letters", b"a letter")

    with (
        amqp_channel(rabbitmq.url) as channel,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no queue"),
    ):
        channel.queue_declare("letters", passive=True)


def test_all_connections_can_be_closed_by_the_server(rabbitmq: PrivateRabbitmq, amqp_url: str) -> None:
    with amqp_channel(amqp_url) as channel:
        rabbitmq.close_all_connections("for a test")

        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="for a test"):
            channel.queue_declare("letters")


def test_an_alarm_blocks_publishers_until_it_is_over(own_rabbitmq: PrivateRabbitmq) -> None:
    news: list[str] = []
    with amqp_channel(own_rabbitmq.url) as channel:
        connection = channel.connection
        connection.add_on_connection_blocked_callback(lambda *_: news.append("blocked"))
        connection.add_on_connection_unblocked_callback(lambda *_: news.append("unblocked"))
        channel.queue_declare("letters", durable=True, arguments=QUORUM)

        def hears(*expected: str) -> bool:
            connection.process_data_events(0)
            return news == list(expected)

        def hears_of_an_alarm() -> bool:
            # A connection is told when it publishes, if it has itself heard by then.
            channel.basic_publish("", "letters", b"")
            return hears("blocked")

        for set_alarm in (own_rabbitmq.set_memory_alarm, own_rabbitmq.set_disk_alarm):
            news.clear()
            set_alarm(True)
            assert waits_until(hears_of_an_alarm)

            set_alarm(False)
            assert waits_until(lambda: hears("blocked", "unblocked"))


def test_rabbitmqctl_speaks_to_the_private_node_only(rabbitmq: PrivateRabbitmq) -> None:
    assert rabbitmq.node in rabbitmq.ctl("cluster_status")
    with pytest.raises(ServerFailed, match="absent"):
        rabbitmq.ctl("delete_vhost", "absent")


def test_an_expression_that_raises_in_the_node_raises_here(rabbitmq: PrivateRabbitmq) -> None:
    assert rabbitmq.evaluate("1 + 1") == "2"
    with pytest.raises(ServerFailed, match="out_of_luck"):
        rabbitmq.evaluate("error(out_of_luck)")


def test_an_appended_file_brings_redis_back_after_a_kill(own_redis: PrivateRedis) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("letter", "a letter")
        assert waits_until(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
    own_redis.kill()

    own_redis.start()

    with redis.Redis.from_url(own_redis.url) as client:
        assert client.get("letter") == b"a letter"


def test_the_sessions_redis_comes_empty(redis_server: PrivateRedis, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("left", "behind")
        redis_server.empty()
        assert client.dbsize() == 0


def test_postgresql_keeps_its_databases_over_kill_and_restart(postgresql: PrivatePostgresql) -> None:
    postgresql.create_database("letters")
    postgresql.kill()
    postgresql.start()
    postgresql.restart()

    with pytest.raises(ServerFailed, match="already exists"):
        postgresql.create_database("letters")
    postgresql.drop_database("letters")


def test_each_test_has_a_database_of_its_own(postgresql_url: str) -> None:
    assert postgresql_url.rpartition("/")[2].startswith("test_")


def test_a_frozen_server_accepts_and_does_not_answer(own_redis: PrivateRedis) -> None:
    with own_redis.frozen(), socket.create_connection(("127.0.0.1", own_redis.port), timeout=0.2) as client:
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)

    with redis.Redis.from_url(own_redis.url) as client:
        assert client.ping()


@LINUX
@pytest.mark.parametrize("kind", [PrivateRabbitmq, PrivateRedis, PrivatePostgresql])
def test_closing_leaves_no_process_and_no_folder(kind: type[PrivateServer], installed: Installed) -> None:
    others = family(os.getpid())
    with installed(kind) as server:
        started = family(os.getpid()) - others
        assert server.pid in started

    assert waits_until(lambda: not started & processes().keys())
    assert not server.folder.exists()


@LINUX
@pytest.mark.parametrize("kind", [PrivateRabbitmq, PrivateRedis, PrivatePostgresql])
def test_servers_end_when_their_owner_is_killed(kind: type[PrivateServer], installed: Installed) -> None:
    installed(kind).close()
    program = (
        "import time; from callboard import servers;"
        f"server = servers.{kind.__name__}().start();"
        "print(server.folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            folder = owner.stdout.readline().strip()
            started = family(owner.pid)
        finally:
            owner.kill()

    assert started
    assert waits_until(lambda: not started & processes().keys())
    shutil.rmtree(folder)


def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ServerMissing, match="sudo apt-get install redis-server"):
        PrivateRedis()


def test_a_server_that_cannot_start_says_what_it_printed(tmp_path: Path, installed: Installed) -> None:
    server = installed(lambda: PrivateRedis(tmp_path / "redis", append_only=True))
    (tmp_path / "redis" / "appendonlydir").write_text("in the way")
    with pytest.raises(ServerFailed, match=r"ended while it started(.|\n)*appendonlydir: Not a dir"):
        server.start()
    server.close()


def test_a_folder_that_is_given_outlives_the_server(tmp_path: Path, installed: Installed) -> None:
    with installed(lambda: PrivateRedis(tmp_path / "redis")) as server:
        assert server.running
    assert (tmp_path / "redis").is_dir()
    assert not server.running


def test_a_port_stays_reserved_while_its_server_is_down(own_redis: PrivateRedis) -> None:
    own_redis.kill()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", own_redis.port))
    own_redis.start()
