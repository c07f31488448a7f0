"""Lets jobs start no more often than their actor's rate allows, over all workers."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.errors import StoreUnavailable
from callboard.limits import RateLimit
from middleware.limit_keys import check_key, counted_with
from middleware.waits import STORE_AWAY, WrongLimit, send_back, store_of


class RateLimits(Middleware):
    """A job that must wait goes back to the broker with the time that is reserved for it, as snoozed: it uses no
    attempt and no thread. While the store is away, jobs with a rate wait, and look again every 5 s."""

    @property
    def actor_options(self) -> set[str]:
        return {"rate"}

    def before_declare_actor(self, broker: Broker, actor: dramatiq.Actor[Any, Any]) -> None:
        rate = actor.options.get("rate")
        if rate is None:
            return
        if not isinstance(rate, RateLimit):
            try:
                actor.options["rate"] = rate = RateLimit(rate)
            except (ValueError, AttributeError) as error:
                raise WrongLimit(f"the actor '{actor.actor_name}': {error}") from error
        check_key(actor, rate)

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        actor = broker.actors[message.actor_name]
        limit: RateLimit | None = actor.options.get("rate")
        if limit is None:
            return
        owner, value = counted_with(actor, limit, message)
        whose = f"{owner}, {value}" if value else owner
        slot, now = message.headers.slot, broker.clock()
        try:
            wait = store_of(broker).reserve(
                f"{owner}:{value}", every=limit.every, burst=limit.at_once, came_back=slot is not None
            )
        except StoreUnavailable as error:
            reason = f"waits for the store, which has the rate limit of {whose}: {error}"
            send_back(message, now + STORE_AWAY, reason, slot=slot)
        if wait > 0:
            reason = f"waits for the rate limit of {whose}, {limit.rate}"
            send_back(message, now + wait, reason, slot=now + wait)
