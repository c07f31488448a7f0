"""Lets no more jobs run at once than their actor's limit allows, over all workers."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import Drop
from callboard.errors import StoreUnavailable
from callboard.limits import ConcurrencyLimit
from callboard.loggers import get_logger
from middleware.limit_keys import check_key, counted_with
from middleware.waits import STORE_AWAY, WrongLimit, send_back, store_of

log = get_logger(__name__)


class ConcurrencyLimits(Middleware):
    """A job that finds no place goes back to the broker with a time to look again, as snoozed: it uses no attempt and
    no thread. While the store is away, jobs with a limit don't start.

    Args:
        hold: How long a place is held when its worker has died. It is renewed three times as often.
    """

    idle_without = frozenset({"concurrency"})

    def __init__(self, *, hold: timedelta = timedelta(seconds=30)) -> None:
        self._hold = hold.total_seconds()
        self._stop = threading.Event()

    @property
    def actor_options(self) -> set[str]:
        return {"concurrency"}

    def before_declare_actor(self, broker: Broker, actor: dramatiq.Actor[Any, Any]) -> None:
        limit = actor.options.get("concurrency")
        if limit is None:
            return
        if not isinstance(limit, ConcurrencyLimit):
            try:
                actor.options["concurrency"] = limit = ConcurrencyLimit(limit)
            except ValueError as error:
                raise WrongLimit(f"the actor '{actor.actor_name}': {error}") from error
        check_key(actor, limit)

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        self._stop = threading.Event()
        threading.Thread(
            target=self._renew, args=(broker, self._stop), name="callboard-places", daemon=True
        ).start()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        self._stop.set()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        actor = broker.actors[message.actor_name]
        limit: ConcurrencyLimit | None = actor.options.get("concurrency")
        if limit is None:
            return
        owner, value = counted_with(actor, limit, message)
        whose = f"{owner}, {value}" if value else owner
        key, slot, now = f"{owner}:{value}", message.headers.slot, broker.clock()
        try:
            wait, before = store_of(broker).enter(
                key, message.message_id, places=limit.places, ttl=self._hold, came_back=slot is not None
            )
        except StoreUnavailable as error:
            reason = f"waits for the store, which has the places of {whose}: {error}"
            send_back(message, now + STORE_AWAY, reason, slot=slot)
        if wait > 0:
            place = "the place" if limit.places == 1 else f"one of {limit.places} places"
            reason = f"waits for {place} of {whose}" + (f", about {before:,} before it" if before else "")
            send_back(message, now + wait, reason, slot=now + wait)
        message.place = key

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self.after_skip_message(broker, message)

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        key = message.__dict__.pop("place", None)
        if key is None or broker.store is None or isinstance(message.disposition, Drop):
            return  # who has the job by now has its place, too
        try:
            broker.store.leave(key, message.message_id)
        except StoreUnavailable as error:
            log.warning("a place isn't given back, it ends by itself", key=key, error=str(error))

    def _renew(self, broker: CallboardBroker, stop: threading.Event) -> None:
        while not stop.wait(self._hold / 3):
            for message in list(broker.running.values()):
                key = message.__dict__.get("place")
                if key is None or broker.store is None:
                    continue
                try:
                    broker.store.stay(key, message.message_id, ttl=self._hold)
                except StoreUnavailable as error:
                    log.warning("a place isn't renewed", key=key, error=str(error))
