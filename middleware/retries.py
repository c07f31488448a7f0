"""Decides whether a failed run is tried again, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.middleware import Shutdown

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import ClaimedMessage, GiveBack, Later
from callboard.context import Cancelled
from callboard.errors import Snooze, text_of
from callboard.retry import RetryPolicy
from callboard.states import State

_DEFAULT = RetryPolicy()


class Retries(Middleware):
    """Sends failed runs back to wait in the broker.

    Actors say `retries=`, a number or a `RetryPolicy`. Dramatiq's `max_retries`, `min_backoff`,
    `max_backoff`, `retry_when` and `throws` mean what they mean there.
    """

    idle_without: frozenset[str] = frozenset()

    def __init__(self, *, policy: RetryPolicy = _DEFAULT) -> None:
        self.policy = policy

    @property
    def actor_options(self) -> set[str]:
        return {
            "retries",
            "max_retries",
            "min_backoff",
            "max_backoff",
            "retry_when",
            "throws",
            "on_retry_exhausted",
        }

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None or message.disposition is not None or isinstance(exception, Cancelled):
            return
        assert isinstance(broker, CallboardBroker)
        now = broker.clock()
        if isinstance(exception, Shutdown):
            message.disposition = GiveBack()
        elif isinstance(exception, Snooze):
            due = now + exception.wait.total_seconds()
            message.disposition = Later(State.SNOOZED, due, reason=text_of(exception))
        elif (wait := self._wait(broker.get_actor(message.actor_name), message, exception, now)) is not None:
            failed = message.failed_run(exception, now)
            message.disposition = Later(
                State.RETRYING,
                now + wait.total_seconds(),
                reason=f"attempt {message.attempt} failed: {failed.type}: {failed.message}"[:1000],
                failed_run=failed,
            )

    def _wait(
        self, actor: dramatiq.Actor[Any, Any], message: ClaimedMessage, error: BaseException, now: float
    ) -> timedelta | None:
        """How long to wait for the next run; None if there is none."""
        options = {**actor.options, **message.options}
        throws = options.get("throws")
        policy = self._policy(options)
        if (throws and isinstance(error, throws)) or not policy.may_retry(error):
            return None
        retry_when = options.get("retry_when")
        if retry_when is not None:
            if not retry_when(message.attempt - 1, error):
                return None
        elif message.attempt >= policy.attempts:
            return None
        if isinstance(error, dramatiq.Retry) and error.delay is not None:
            return timedelta(milliseconds=error.delay)
        return policy.wait(message.attempt, error, now=now)

    def _policy(self, options: dict[str, Any]) -> RetryPolicy:
        policy = options.get("retries")
        if not isinstance(policy, RetryPolicy):
            policy = self.policy
        if not options.keys() & {"max_retries", "min_backoff", "max_backoff"}:
            return policy
        max_retries = options.get("max_retries", policy.attempts - 1)
        base = timedelta(milliseconds=options["min_backoff"]) if "min_backoff" in options else policy.base
        cap = timedelta(milliseconds=options["max_backoff"]) if "max_backoff" in options else policy.cap
        return RetryPolicy(
            attempts=10**9 if max_retries is None else max_retries + 1, base=base, cap=max(base, cap)
        )
