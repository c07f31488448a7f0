"""The job on stock Dramatiq and RabbitMQ, with its default middleware."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks import job as measured

broker = RabbitmqBroker(
    url=os.environ["BENCH_AMQP_URL"], confirm_delivery=bool(os.environ.get("BENCH_CONFIRM"))
)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)
