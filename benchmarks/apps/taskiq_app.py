"""The job on taskiq with RabbitMQ: a quorum queue, confirmed sends, acknowledged after the run."""

from __future__ import annotations

import os
from typing import Any

from taskiq_aio_pika import AioPikaBroker

from benchmarks import job as measured

broker = AioPikaBroker(os.environ["BENCH_SERVER_URL"], qos=200)


@broker.task(task_name="bench")  # type: ignore[untyped-decorator]
async def bench(job: dict[str, Any]) -> None:
    """Count."""
    measured.run(job)
