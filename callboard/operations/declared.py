"""What is declared: the actors, and the schemas of their payloads."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from dramatiq import Actor

from callboard import queues
from callboard.actor import JobActor
from callboard.brokers.base import Broker
from callboard.cron import Cron
from callboard.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSchema:
    """An actor, and what it accepts.

    Attributes:
        version: Of its payload.
        steps: The earlier versions from which it has a step to the next.
        payload: JSON schema (2020-12) of its payload; None for a stock Dramatiq actor, which checks nothing.
        attempts: Runs in all, where the actor says so itself.
        time_limit: In seconds, where the actor says so itself.
        periodic: Its schedule, if it starts by itself.
        summary: The first line of its docstring.
    """

    name: str
    category: str
    queue: str
    priority: str
    version: int
    steps: tuple[int, ...]
    payload: dict[str, Any] | None
    attempts: int | None
    time_limit: float | None
    periodic: str | None
    summary: str


def schemas(broker: Broker) -> list[ActorSchema]:
    """The actors that are declared on a broker, by category and name."""
    found = [_schema(actor) for actor in broker.actors.values()]
    return sorted(found, key=lambda schema: (schema.category, schema.name))


def _schema(actor: Actor[Any, Any]) -> ActorSchema:
    category, priority = queues.split(actor.queue_name)
    retries, limit = actor.options.get("retries"), actor.options.get("time_limit")
    periodic = actor.options.get("periodic")
    job_actor = actor if isinstance(actor, JobActor) else None
    seconds = getattr(limit, "total_seconds", None)
    return ActorSchema(
        name=actor.actor_name,
        category=job_actor.category if job_actor is not None else category,
        queue=actor.queue_name,
        priority=priority.word,
        version=job_actor.payload_version if job_actor is not None else 1,
        steps=tuple(sorted(job_actor.steps)) if job_actor is not None else (),
        payload=job_actor.payload.json_schema() if job_actor is not None else None,
        attempts=retries.attempts if isinstance(retries, RetryPolicy) else None,
        time_limit=seconds() if seconds is not None else limit / 1000 if limit is not None else None,
        periodic=str(periodic) if isinstance(periodic, Cron) else None,
        summary=(inspect.getdoc(actor) or "").partition("\n")[0] if job_actor is not None else "",
    )
