"""What stands in RabbitMQ: queues of jobs, and how each is declared.

A queue is a quorum queue of its own name, with the namespace before it. Queues that are walked (dead
letters, the quarantine) have a single active consumer. RabbitMQ checks that whoever declares a queue names
the same arguments, so they are spelled once, here, and never change with versions or settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from callboard import queues
from callboard.brokers.rabbitmq.outage import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from callboard.brokers.rabbitmq.script import Script
from callboard.errors import CallboardError

#: Give-backs and reconnects count as deliveries too, so that a low limit would kill innocent jobs; RabbitMQ 4
#: takes 20 where none is declared. Jobs that kill their workers are counted by Callboard.
DELIVERY_LIMIT = 1_000_000

#: Seconds before a deleted queue is declared again. Within some 50 ms of a deletion, more on a busy machine, RabbitMQ
#: (3.10.8) hangs the consumers of the old quorum queue on the new one, where they are given messages that never
#: reach anybody.
AFTER_A_DELETION = 0.5

QUORUM: Mapping[str, object] = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
_LONGEST_NAME = 255  # bytes, a short string of AMQP


class QueueMismatch(CallboardError):
    """A queue isn't as we need it, and we can't make it so."""


def named(namespace: str, name: str) -> str:
    """The name of a queue or an exchange, with its namespace."""
    return f"{namespace}.{name}" if namespace else name


def arguments_of(queue: str) -> dict[str, object]:
    """How a queue is declared; `queue` is without the namespace."""
    if queue == queues.QUARANTINE or queue.endswith(".dead"):
        return {**QUORUM, "x-single-active-consumer": True}
    return dict(QUORUM)


def declare_queue(name: str, arguments: Mapping[str, object]) -> Script[None]:
    """Create a queue unless it exists.

    Raises:
        QueueMismatch: It exists with other arguments, or doesn't and may not be created.
    """
    if len(name.encode()) > _LONGEST_NAME:
        raise QueueMismatch(
            f"the queue name '{name[:40]}...' is longer than the {_LONGEST_NAME} bytes of RabbitMQ"
        )
    try:
        yield partial(Channel.queue_declare, queue=name, durable=True, arguments=dict(arguments))
    except ChannelClosedByBroker as error:
        if error.reply_code == PRECONDITION_FAILED:
            raise QueueMismatch(
                f"the queue '{name}' exists in RabbitMQ with other arguments than Callboard's ({error.reply_text}): "
                "empty and delete it, or set CALLBOARD_NAMESPACE"
            ) from error
        if error.reply_code != ACCESS_REFUSED:
            raise
        yield from _find_queue(name)


def _find_queue(name: str) -> Script[None]:
    """For a user who may not create queues: it may be there all the same."""
    try:
        yield partial(Channel.queue_declare, queue=name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        raise QueueMismatch(
            f"the queue '{name}' doesn't exist in RabbitMQ, and our user may not create it: "
            "run `callboard queues create`, or start a worker, as one who may"
        ) from error


def count_messages(names: Mapping[str, str]) -> Script[dict[str, tuple[int, int]]]:
    """How many messages are ready and how many consumers there are, for the queues that exist.

    `names` maps what a queue is called in the answer to its name in RabbitMQ.
    """
    found: dict[str, tuple[int, int]] = {}
    for key, name in names.items():
        try:
            answer = yield partial(Channel.queue_declare, queue=name, passive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
        else:
            found[key] = (answer.method.message_count, answer.method.consumer_count)
    return found


def purge_queue(name: str) -> Script[int]:
    """Drop the ready messages of a queue; 0 if there is no such queue."""
    try:
        answer = yield partial(Channel.queue_purge, queue=name)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return 0
    purged: int = answer.method.message_count
    return purged
