"""What limits have in common: the job that has to wait, and the limit that makes no sense."""

from __future__ import annotations

from typing import NoReturn

from dramatiq.middleware import MiddlewareError, SkipMessage

from callboard.brokers.base import Broker
from callboard.brokers.claim import ClaimedMessage, Later
from callboard.errors import DeclarationError, StoreUnavailable
from callboard.states import State
from callboard.store.base import Store

#: Seconds until a job looks again whose limit can't be read.
STORE_AWAY = 5.0


class WrongLimit(DeclarationError, MiddlewareError):
    """An actor's limit makes no sense. Dramatiq lets only what is also its own error come up from a hook."""


def store_of(broker: Broker) -> Store:
    """The store, in which limits are.

    Raises:
        StoreUnavailable: There is none.
    """
    if broker.store is None:
        raise StoreUnavailable("this broker has none")
    return broker.store


def send_back(message: ClaimedMessage, due: float, reason: str, *, slot: float | None) -> NoReturn:
    """Let a job wait in the broker.

    Args:
        message: The job, claimed and not started.
        due: Until when, in seconds since the epoch.
        reason: Why; what `callboard why` says begins with it.
        slot: The moment that the limit has reserved for it, if it has.

    Raises:
        SkipMessage: Always.
    """
    message.disposition = Later(State.SNOOZED, due, reason=reason, slot=slot)
    raise SkipMessage(reason)
