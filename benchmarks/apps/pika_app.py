"""What a message costs without any system around it: pika, a quorum queue, an ack for each."""

from __future__ import annotations

import json
import os

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from benchmarks import job as measured

QUEUE = "bench"


def open_channel() -> BlockingChannel:
    """A channel of a connection of its own, with the queue declared."""
    channel = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_SERVER_URL"])).channel()
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    return channel


def _run(channel: BlockingChannel, method: Basic.Deliver, _: BasicProperties, body: bytes) -> None:
    measured.run(json.loads(body))
    channel.basic_ack(method.delivery_tag)


if __name__ == "__main__":
    consuming = open_channel()
    consuming.basic_qos(prefetch_count=100)
    consuming.basic_consume(QUEUE, _run)
    consuming.start_consuming()
