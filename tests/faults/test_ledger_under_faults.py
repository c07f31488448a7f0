"""Nothing is lost, and nothing runs twice at once, whatever the broker and the network suffer.

Two producers send a few hundred jobs a second to a worker of three processes, while a broker or the network
fails in one way. Then what was sent has to run. Each test prints its ledger, and how long it took after the
fault until everything that had been sent by then had run.

A job may run again, and each test says when. On RabbitMQ that is rare: a job whose claim was lost with its
connection comes again, waits two seconds, and goes without a run if its record says that it has ended.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from callboard.servers import PrivateRabbitmq, PrivateRedis, RabbitmqCluster
from callboard.servers.proxy import FaultProxy
from tests.faults.ledger import Processes, until

PATIENCE = 60.0
#: Jobs that one process has unacked: what may run again for one fault, at the very most.
HELD = 3 * (256 + 4)


def begin(processes: Processes, worker_url: str, producer_url: str = "") -> None:
    """Start everything, and wait until jobs run."""
    processes.start_worker(worker_url)
    for name in ("a", "b"):
        processes.start_producer(name, producer_url or worker_url)
    until(
        lambda: len(processes.ledger.runs()) > 50 or not processes.live(), seconds=PATIENCE, what="the start"
    )
    assert processes.live(), (processes.ledger.folder / "worker.log").read_text()


def recover(processes: Processes, what: str) -> None:
    """After a fault: wait until new jobs are sent, and all that were sent so far have run."""
    ledger, over = processes.ledger, time.monotonic()
    until(lambda: max(ledger.sent().values()) > over, seconds=PATIENCE, what=f"the producers, after {what},")
    before = {job_id for job_id, moment in ledger.sent().items() if moment <= over}
    until(lambda: not before - ledger.runs().keys(), seconds=PATIENCE, what=f"the backlog, after {what},")
    print(f"{what}: recovered in {time.monotonic() - over:.1f} s")


def end(processes: Processes, *, again: int) -> None:
    """Let everything run, and check the ledger. So many jobs may have run again."""
    ledger = processes.ledger
    processes.enough()
    until(lambda: not ledger.lost(), seconds=PATIENCE, what="the backlog")
    print(ledger)
    assert ledger.lost() == set()
    assert ledger.at_once() == []
    assert len(ledger.again()) <= again


# -- RabbitMQ


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_connections_are_closed_every_second(
    processes: Processes, rabbitmq: PrivateRabbitmq, amqp_url: str, seconds: int
) -> None:
    """What was acked or confirmed in the moment of a closing is delivered or written again. It runs again only
    if the record of its run wasn't written within two seconds, which a busy machine may need."""
    begin(processes, amqp_url)
    for _ in range(seconds):
        rabbitmq.close_all_connections()
        time.sleep(1)
    recover(processes, f"{seconds} closings")
    end(processes, again=seconds * HELD)


def test_rabbitmq_is_killed_and_started_again(processes: Processes, own_rabbitmq: PrivateRabbitmq) -> None:
    begin(processes, own_rabbitmq.url)
    own_rabbitmq.write_down_queues()
    own_rabbitmq.kill()
    own_rabbitmq.start()
    recover(processes, "kill -9 of RabbitMQ")
    end(processes, again=2 * HELD)


def test_rabbitmq_has_no_memory_left_for_a_while(
    processes: Processes, rabbitmq: PrivateRabbitmq, amqp_url: str
) -> None:
    """Producers wait, and none of their sends raises, as the alarm is shorter than their deadline."""
    begin(processes, amqp_url)
    rabbitmq.set_memory_alarm(True)
    try:
        time.sleep(2)
    finally:
        rabbitmq.set_memory_alarm(False)
    recover(processes, "a memory alarm")
    end(processes, again=0)
    assert processes.ledger.raised() == 0


@pytest.mark.slow
def test_queues_are_deleted_in_mid_run(processes: Processes, amqp_url: str) -> None:
    """What is in a queue goes with it, so the queues are empty at that moment. What comes afterwards is neither
    lost nor refused: they are declared again, by a producer that knows them and a worker that consumes them."""
    begin(processes, amqp_url)
    names = [f"ledger.{word}" for word in ("critical", "high", "medium", "low")]
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        for _ in range(2):
            with producers_stopped(processes):
                until(
                    lambda: is_empty(connection, names) and not processes.ledger.lost(),
                    seconds=PATIENCE,
                    what="the backlog",
                )
                time.sleep(1)  # the last message may have been queued and not confirmed yet
                until(lambda: is_empty(connection, names), seconds=PATIENCE, what="the backlog")
                for name in names:
                    connection.channel().queue_delete(name)
                # Who declares a queue anew before its consumers are told of the deletion leaves them to RabbitMQ's
                # (3.10.8) mercy, and a producer that was stopped may be about to.
                time.sleep(2)
            recover(processes, "a deletion of all queues")
    end(processes, again=2 * HELD)


def is_empty(connection: pika.BlockingConnection, names: Sequence[str]) -> bool:
    """Whether all of these queues exist, and nothing is ready in them."""
    channel = connection.channel()
    try:
        found = [channel.queue_declare(name, passive=True).method.message_count for name in names]
    except ChannelClosedByBroker:
        return False
    channel.close()
    return not any(found)


@contextmanager
def producers_stopped(processes: Processes) -> Iterator[None]:
    for producer in processes.producers.values():
        producer.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for producer in processes.producers.values():
            producer.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_the_leader_of_three_rabbitmqs_is_killed(
    processes: Processes, installed: Callable[[Callable[[], RabbitmqCluster]], RabbitmqCluster]
) -> None:
    """Everybody is connected to the first node, which leads the queues that it declares. They go on with the
    others."""
    with installed(RabbitmqCluster) as cluster:
        begin(processes, cluster.url)
        first = cluster.nodes[0]
        first.kill()
        recover(processes, "kill -9 of the leader")
        first.start()
        recover(processes, "its return")
        end(processes, again=2 * HELD)


# -- the network


def reset(proxy: FaultProxy) -> None:
    for _ in range(3):
        proxy.cut()
        time.sleep(0.2)


def stall(proxy: FaultProxy) -> None:
    proxy.stall()
    time.sleep(1)
    proxy.heal()
    proxy.stall("to server")
    time.sleep(1)
    proxy.heal()
    proxy.stall("to client")
    time.sleep(1)
    proxy.heal()


def slow_down(proxy: FaultProxy) -> None:
    proxy.slow(latency=0.2)
    time.sleep(2)
    proxy.slow(bandwidth=50_000)
    time.sleep(1)
    proxy.heal()


def forget(proxy: FaultProxy) -> None:
    proxy.half_open()


def refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    time.sleep(1.5)
    proxy.heal()


Fault = Callable[[FaultProxy], None]

#: The quick ones in each run of the tests, the others where there is time.
faults = pytest.mark.parametrize(
    "faults",
    [
        pytest.param((reset, refuse), id="resets"),
        pytest.param((reset, stall, slow_down, forget, refuse), id="all", marks=pytest.mark.slow),
    ],
)


def suffer(processes: Processes, faults: Sequence[Fault], url: str, port: int) -> None:
    """Each fault on the worker's connections, then on the producers'."""
    with FaultProxy(port) as workers, FaultProxy(port) as producers:
        begin(processes, workers.url(url), producers.url(url))
        for fault in faults:
            for whose, proxy in (("worker", workers), ("producers", producers)):
                fault(proxy)
                recover(processes, f"{fault.__name__} for the {whose}")
        end(processes, again=2 * len(faults) * HELD)


@faults
def test_the_network_to_rabbitmq_fails_in_every_way(
    processes: Processes, rabbitmq: PrivateRabbitmq, amqp_url: str, faults: Sequence[Fault]
) -> None:
    """Where a claim is lost with its connection, see the module's head. A connection that is forgotten is found
    to be dead by its heartbeat, here of four seconds; until then nothing from it is started."""
    suffer(processes, faults, f"{amqp_url}?heartbeat=4", rabbitmq.port)


@faults
def test_the_network_to_redis_fails_in_every_way(
    processes: Processes, redis_server: PrivateRedis, faults: Sequence[Fault]
) -> None:
    """Claims outlive connections: a worker that comes back within its lease has what it had. Acks are given
    again until they are answered, so that nothing runs again but what a worker held when its lease was over."""
    redis_server.empty()
    suffer(processes, faults, redis_server.url, redis_server.port)


# -- Redis


def test_redis_is_killed_and_started_again(
    processes: Processes, installed: Callable[[Callable[[], PrivateRedis]], PrivateRedis]
) -> None:
    """It writes each change to disk before it answers (`appendfsync always`): nothing is lost. An ack that was
    on its way is given again."""
    server = installed(lambda: PrivateRedis(append_only=True, options={"appendfsync": "always"}))
    with server:
        begin(processes, server.url)
        for _ in range(2):
            server.kill()
            server.start()
            recover(processes, "kill -9 of Redis")
        end(processes, again=2 * HELD)


def test_redis_that_writes_once_a_second_loses_no_more_than_the_last_two_seconds(
    processes: Processes, own_redis: PrivateRedis
) -> None:
    """With `appendfsync everysec`, Redis answers before the disk has it. A kill of the process loses what it hasn't
    handed to the kernel, which it puts off for up to two seconds while an fsync is under way; usually nothing. Only a
    crash of the machine loses more: what wasn't fsynced, a second or two. What an ack of that time said is lost, too:
    those jobs run again."""
    begin(processes, own_redis.url)
    own_redis.kill()
    killed = time.monotonic()
    own_redis.start()
    ledger = processes.ledger
    until(lambda: max(ledger.sent().values()) > time.monotonic() - 1, seconds=PATIENCE, what="the producers")
    processes.enough()
    recent = {job_id for job_id, moment in ledger.sent().items() if killed - 5 < moment < killed + 5}
    until(lambda: ledger.lost() <= recent, seconds=PATIENCE, what="the backlog")
    print(ledger)
    assert ledger.at_once() == []
    assert len(ledger.again()) <= HELD
