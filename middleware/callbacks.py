"""Tells another actor how a run ended."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, middleware

from callboard.brokers.claim import Drop, GiveBack, Later
from callboard.context import Cancelled


class Callbacks(middleware.Callbacks):
    """Dramatiq's callbacks, but `on_failure` is told of failures only: not of a job that snoozes, that a deploy
    interrupts, that is cancelled, or that another worker has by now."""

    idle_without = frozenset({"on_success"})

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        disposition = message.disposition
        no_failure = isinstance(exception, Cancelled) or isinstance(disposition, GiveBack | Drop)
        if no_failure or (isinstance(disposition, Later) and disposition.failed_run is None):
            return
        stock: Any = super()  # it has no annotations
        stock.after_process_message(broker, message, result=result, exception=exception)
