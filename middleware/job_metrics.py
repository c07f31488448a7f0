"""Counts and times jobs for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dramatiq import Broker, Message, Middleware

from callboard import queues
from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import DONE, Die, Finish, Later
from callboard.metrics import JobNumbers, Metrics
from callboard.states import State


class JobMetrics(Middleware):
    """Feeds `callboard.metrics.Metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: dict[tuple[str, str], JobNumbers] = {}

    def _of(self, queue_name: str, actor_name: str) -> JobNumbers:
        key = queue_name, actor_name
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._metrics.of(*_labels(queue_name, actor_name))
        return known

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        self._of(message.queue_name, message.actor_name).enqueued()

    def after_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        """`after_enqueue` for many messages at once."""
        counts = Counter([(message.queue_name, message.actor_name) for message in messages])
        for (queue_name, actor_name), count in counts.items():
            self._of(queue_name, actor_name).enqueued(count)

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        running = broker.running
        self._metrics.in_progress = lambda: [
            _labels(message.queue_name, message.actor_name) for message in list(running.values())
        ]

    def before_process_message(self, broker: Broker, message: Any) -> None:
        waited = message.started_at - message.ready_at()
        self._of(message.queue_name, message.actor_name).started(waited if waited > 0 else 0.0)
        message.metrics_started = time.perf_counter()

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        message.metrics_seconds = time.perf_counter() - message.metrics_started

    def after_ack(self, broker: Broker, message: Any) -> None:
        disposition = message.disposition
        seconds = message.__dict__.get("metrics_seconds")
        known = self._of(message.queue_name, message.actor_name)
        if disposition is DONE or (isinstance(disposition, Finish) and disposition.state is State.SUCCEEDED):
            known.ended(seconds, "succeeded")
        elif isinstance(disposition, Later) and disposition.state is State.RETRYING:
            known.ended(seconds, "retried", *(("failed",) if disposition.failed_run is not None else ()))
        elif isinstance(disposition, Die):
            known.ended(seconds, "dead", *(("failed",) if disposition.failed_run is not None else ()))
        else:
            known.ended(seconds)

    after_nack = after_ack


def _labels(queue_name: str, actor_name: str) -> tuple[str, str, str]:
    category, priority = queues.split(queue_name)
    return category, actor_name, priority.word
