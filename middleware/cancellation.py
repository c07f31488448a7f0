"""Keeps cancelled jobs from starting, and ends those that stop when they see the flag."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.middleware import SkipMessage

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import Finish
from callboard.context import Cancelled
from callboard.states import State


class Cancellation(Middleware):
    """A job that was cancelled before its start never starts. A running one sees
    `current_job().cancelled()`, and ends as cancelled by raising `Cancelled`; if it succeeds instead, it has
    succeeded."""

    idle_without: frozenset[str] = frozenset()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.is_cancelled(message.message_id):
            message.disposition = Finish(State.CANCELLED, reason="cancelled before it started")
            raise SkipMessage("cancelled")

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if isinstance(exception, Cancelled) and message.disposition is None:
            message.disposition = Finish(State.CANCELLED, reason="cancelled while it ran")
