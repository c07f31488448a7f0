"""Writes down that jobs were queued. Never slows or stops a send: see `callboard.store.recorder`.

It has no place in `middleware/`: whoever sends by name has this package alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from dramatiq import Broker, Message, Middleware

from callboard import queues
from callboard.actor import JobActor
from callboard.brokers.base import Broker as CallboardBroker
from callboard.payload import masked_json
from callboard.states import State, order
from callboard.store.base import Change


class SentRecords(Middleware):
    """Records each job when it is queued."""

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.recorder is None:
            return
        queued = _Queued(broker, delay, broker.clock(), message)
        if _is_ours(broker, message):
            broker.recorder.record_lazily(queued)
        else:
            broker.recorder.record(queued())

    def after_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        """`after_enqueue` for many messages at once."""
        assert isinstance(broker, CallboardBroker)
        if broker.recorder is None:
            return
        if all(_is_ours(broker, message) for message in messages):
            now = broker.clock()
            broker.recorder.record_many_lazily([_Queued(broker, delay, now, message) for message in messages])
        else:
            for message in messages:
                self.after_enqueue(broker, message, delay)


def _is_ours(broker: CallboardBroker, message: Message[Any]) -> bool:
    """Whether its arguments are a copy, so that nobody changes them before the recorder gets to them."""
    return isinstance(broker.actors.get(message.actor_name), JobActor)


class _Queued(msgspec.Struct, gc=False):
    """That a job was queued. To make the change takes as long as the checks of a send, so the recorder does it.

    The garbage collector knows nothing of it, or it would look through all of them whenever many jobs are sent.
    """

    broker: CallboardBroker
    delay: int | None
    now: float
    message: Message[Any]

    def __call__(self) -> Change:
        message, delay, now = self.message, self.delay, self.now
        state = State.QUEUED if delay is None else State.SCHEDULED
        category, priority = queues.split(message.queue_name)
        extras = message.options.get("callboard") or {}
        return Change(
            job_id=message.message_id,
            order=order(0, state),
            state=state,
            at=now,
            actor=message.actor_name,
            category=category,
            queue=message.queue_name,
            priority=priority._value_,  # `int()` of it takes six times as long
            tags=tuple(extras.get("tags", ())) or None,
            payload=_payload(self.broker, message),
            enqueued_at=message.message_timestamp / 1000,
            due_at=None if delay is None else now + delay / 1000,
            expires_at=extras.get("expires"),
        )


def _payload(broker: CallboardBroker, message: Message[Any]) -> str | None:
    actor = broker.actors.get(message.actor_name)
    if actor is None:  # nobody here knows what is secret in it
        return None
    if isinstance(actor, JobActor):
        return actor.payload.masked(message.kwargs)
    if message.args:
        return masked_json({"args": message.args, "kwargs": message.kwargs})
    return masked_json(message.kwargs)
