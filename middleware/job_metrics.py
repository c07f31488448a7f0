"""Counts and times jobs for Prometheus."""

from __future__ import annotations

import time
from typing import Any

from dramatiq import Broker, Message, Middleware

from callboard import queues
from callboard.brokers.claim import Die, Finish, Later
from callboard.metrics import Metrics
from callboard.states import State


class _Children:
    """The metrics of one actor at one priority, with the labels looked up once: that costs as much as counting."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        self.enqueued = metrics.enqueued.labels(*labels)
        self.started = metrics.started.labels(*labels)
        self.succeeded = metrics.succeeded.labels(*labels)
        self.failed = metrics.failed.labels(*labels)
        self.retried = metrics.retried.labels(*labels)
        self.dead = metrics.dead.labels(*labels)
        self.in_progress = metrics.in_progress.labels(*labels)
        self.run_seconds = metrics.run_seconds.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)


class JobMetrics(Middleware):
    """Feeds `callboard.metrics.Metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._children: dict[tuple[str, str], _Children] = {}

    def _of(self, message: Any) -> _Children:
        key = (message.queue_name, message.actor_name)
        children = self._children.get(key)
        if children is None:
            category, priority = queues.split(message.queue_name)
            children = self._children[key] = _Children(
                self._metrics, (category, message.actor_name, priority.word)
            )
        return children

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        self._of(message).enqueued.inc()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        children = self._of(message)
        children.started.inc()
        children.in_progress.inc()
        children.queue_seconds.observe(max(0.0, message.started_at - message.ready_at()))
        message.metrics_started = time.perf_counter()

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        children = self._of(message)
        children.in_progress.dec()
        children.run_seconds.observe(time.perf_counter() - message.metrics_started)
        fate = message.disposition
        if isinstance(fate, Die) or (isinstance(fate, Later) and fate.state is State.RETRYING):
            children.failed.inc()

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        if hasattr(message, "metrics_started"):
            self._of(message).in_progress.dec()

    def after_ack(self, broker: Broker, message: Any) -> None:
        disposition = message.disposition
        if isinstance(disposition, Finish):
            if disposition.state is State.SUCCEEDED:
                self._of(message).succeeded.inc()
        elif isinstance(disposition, Later):
            if disposition.state is State.RETRYING:
                self._of(message).retried.inc()
        elif isinstance(disposition, Die):
            self._of(message).dead.inc()

    after_nack = after_ack
