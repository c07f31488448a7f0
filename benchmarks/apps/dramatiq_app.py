"""The job on stock Dramatiq with RabbitMQ or Redis, and its default middleware."""

from __future__ import annotations

import os
from typing import Any

import dramatiq

from benchmarks import job as measured


def open_broker(*, confirm: bool) -> Any:
    """A broker on the server that the environment names."""
    url = os.environ["BENCH_SERVER_URL"]
    if url.startswith("redis:"):
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=url)  # type: ignore[no-untyped-call]
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    return RabbitmqBroker(url=url, confirm_delivery=confirm)


broker = open_broker(confirm=bool(os.environ.get("BENCH_CONFIRM")))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)


for _number in range(1, int(os.environ.get("BENCH_QUEUES", "1"))):
    dramatiq.actor(actor_name=f"bench{_number}", queue_name=f"bench{_number}")(bench.fn)
