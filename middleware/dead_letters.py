"""Turns a failure that nobody retries into a dead letter."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, Middleware

from callboard import dead_letter
from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import Die
from callboard.context import Cancelled
from callboard.errors import Permanent


class DeadLetters(Middleware):
    """Tells the broker to dead-letter what failed for good, with the error, its traceback and fingerprint."""

    idle_without: frozenset[str] = frozenset()

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None or message.disposition is not None or isinstance(exception, Cancelled):
            return
        assert isinstance(broker, CallboardBroker)
        failed = message.failed_run(exception, broker.clock())
        if isinstance(exception, Permanent):
            reason = f"permanent: {failed.message}"
        else:
            runs = "once" if message.attempt == 1 else f"{message.attempt} times"
            reason = f"failed {runs}: {failed.type}: {failed.message}"
        message.fail()
        message.disposition = Die(
            reason[:1000],
            failed_run=failed,
            traceback=dead_letter.format_traceback(exception),
            fingerprint=dead_letter.fingerprint(
                message.actor_name,
                failed.type,
                failed.message,
                dead_letter.where_raised(exception),
            ),
        )
        self._tell_exhausted(broker, message)

    def _tell_exhausted(self, broker: Broker, message: Any) -> None:
        """Dramatiq's `on_retry_exhausted`: an actor that is told of the death."""
        target = message.options.get("on_retry_exhausted") or broker.get_actor(
            message.actor_name
        ).options.get("on_retry_exhausted")
        if target:
            retries = {"retries": message.attempt - 1, "max_retries": message.attempt - 1}
            broker.get_actor(target).send(message.asdict(), retries)
