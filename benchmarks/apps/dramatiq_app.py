"""The job on stock Dramatiq with RabbitMQ or Redis, and its default middleware."""

from __future__ import annotations

import os
from typing import Any

import dramatiq

from benchmarks import job as measured


def _broker() -> Any:
    url = os.environ["BENCH_SERVER_URL"]
    if url.startswith("redis:"):
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=url)  # type: ignore[no-untyped-call]
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    return RabbitmqBroker(url=url, confirm_delivery=bool(os.environ.get("BENCH_CONFIRM")))


broker = _broker()
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)
