"""The job on Celery with RabbitMQ: a quorum queue, confirmed sends, acknowledged after the run."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from benchmarks import job as measured


def _app() -> Celery:
    app = Celery("bench", broker=os.environ["BENCH_SERVER_URL"])
    exchange = Exchange("bench", type="topic")  # its delays in the broker need one of this type
    names = ["bench", *(f"bench{number}" for number in range(1, int(os.environ.get("BENCH_QUEUES", "1"))))]
    app.conf.update(
        task_default_queue="bench",
        task_default_queue_type="quorum",
        task_queues=[
            Queue(name, exchange, routing_key=name, queue_arguments={"x-queue-type": "quorum"})
            for name in names
        ],
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=64,  # what its guide advises for many short tasks
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
    )
    return app


app = _app()


@app.task(name="bench")  # type: ignore[untyped-decorator]
def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)
