"""Keeps jobs from starting after their deadline."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.middleware import SkipMessage

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import Finish
from callboard.states import State


class Expiry(Middleware):
    """Ends a job as expired if `expires` has passed before its first run, or Dramatiq's `max_age` has."""

    @property
    def actor_options(self) -> set[str]:
        return {"expires", "max_age"}

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        expires = message.extras.expires
        if expires is None:
            max_age = message.options.get("max_age") or broker.get_actor(message.actor_name).options.get(
                "max_age"
            )
            if max_age is None:
                return
            expires = (message.message_timestamp + max_age) / 1000
        if message.headers.attempt == 0 and broker.clock() > expires:
            moment = datetime.fromtimestamp(expires, UTC).isoformat(timespec="seconds")
            message.disposition = Finish(State.EXPIRED, reason=f"not started before {moment}")
            raise SkipMessage("expired")
