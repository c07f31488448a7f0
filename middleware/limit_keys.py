"""Whom a job counts with: the key of its actor's limit, made of the job's fields."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import dramatiq

from callboard.actor import JobActor
from callboard.brokers.claim import ClaimedMessage
from callboard.limits import ConcurrencyLimit, RateLimit, key_of
from callboard.payload import PayloadMismatch
from middleware.waits import WrongLimit


def check_key(actor: dramatiq.Actor[Any, Any], limit: RateLimit | ConcurrencyLimit) -> None:
    """See that a key that is a name is that of a parameter.

    Raises:
        WrongLimit: The actor has no such parameter.
    """
    if not isinstance(limit.key, str):
        return
    names = _names(actor)
    if names is not None and limit.key not in names:
        known = ", ".join(sorted(names)) or "none"
        raise WrongLimit(
            f"the actor '{actor.actor_name}': the key of its limit, '{limit.key}', is none of its parameters; "
            f"known: {known}"
        )


def counted_with(
    actor: dramatiq.Actor[Any, Any], limit: RateLimit | ConcurrencyLimit, message: ClaimedMessage
) -> tuple[str, str]:
    """The limit's name, and the value of its key; that is empty where all jobs count together."""
    fields = _fields(actor, message) if limit.key is not None else {}
    return limit.name or message.actor_name, key_of(limit.key, fields)


def _names(actor: dramatiq.Actor[Any, Any]) -> Collection[str] | None:
    """The names of the fields; None for a stock actor that takes any."""
    if isinstance(actor, JobActor):
        return actor.payload.fields
    parameters = inspect.signature(actor.fn).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else parameters.keys()


def _fields(actor: dramatiq.Actor[Any, Any], message: ClaimedMessage) -> Mapping[str, Any]:
    """What was sent, by name, and the defaults of the rest. What doesn't fit is left out: the run will say so."""
    if isinstance(actor, JobActor):
        try:
            return {**actor.payload.defaults, **actor.payload.bind(message.args, message.kwargs)}
        except PayloadMismatch:
            return {**actor.payload.defaults, **message.kwargs}
    try:
        bound = inspect.signature(actor.fn).bind_partial(*message.args, **message.kwargs)
    except TypeError:
        return message.kwargs
    bound.apply_defaults()
    return {**bound.arguments, **message.kwargs}
