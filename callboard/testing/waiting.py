"""A job that waits, as a test sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dramatiq import Actor, Message

from callboard import envelope, queues
from callboard.actor import JobActor
from callboard.errors import Unreadable
from callboard.payload import PayloadMismatch
from callboard.states import State
from callboard.worker.inline import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A job that waits in a queue.

    Attributes:
        id: Its id.
        actor: Its actor's name.
        kwargs: Its arguments, as JSON has them.
        args: Those without a name; only jobs of stock Dramatiq actors have any.
        queue: The queue it waits in.
        priority: Of that queue.
        due: When it may start; None if it may start now.
        tags: Its tags.
        attempt: The number of its next run, from 1.
        state: `queued`, `scheduled`, `retrying`, `snoozed` or `parked`.
        reason: Why it waits, in a few words.
        payload: Its arguments as the actor gets them: an instance of its model, or a dict of Python values;
            None if they don't fit.
    """

    id: str
    actor: str
    kwargs: dict[str, Any]
    args: tuple[Any, ...] = ()
    queue: str
    priority: int
    due: datetime | None
    tags: tuple[str, ...]
    attempt: int
    state: State
    reason: str
    payload: Any = field(compare=False)

    def __repr__(self) -> str:
        arguments = [repr(arg) for arg in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        notes = [
            f"in {self.queue}",
            *([f"{self.state} until {self.due.isoformat()}"] if self.due else []),
            *([f"attempt {self.attempt}"] if self.attempt > 1 else []),
            *([f"tags {', '.join(self.tags)}"] if self.tags else []),
        ]
        return f"<{self.actor}({', '.join(arguments)}) {', '.join(notes)}, id {self.id}>"


def waiting_job(found: Waiting, actors: Mapping[str, Actor[Any, Any]]) -> WaitingJob:
    """What a message that waits says of its job; one that can't be read is called 'unreadable'."""
    message: Message[Any] | None
    try:
        message = envelope.decode(found.body, max_bytes=len(found.body))
        headers = envelope.decode_headers(found.headers)
        tags = tuple(envelope.extras_of(message.options).tags)
    except Unreadable:  # it will go to quarantine
        message, headers, tags = None, envelope.Headers(), ()
    return WaitingJob(
        id=message.message_id if message else found.job_id,
        actor=message.actor_name if message else "unreadable",
        kwargs=message.kwargs if message else {},
        args=message.args if message else (),
        queue=found.queue,
        priority=queues.priority_of(found.queue),
        due=None if found.due is None else datetime.fromtimestamp(found.due, UTC),
        tags=tags,
        attempt=headers.attempt + 1,
        state=State(headers.state or State.QUEUED) if found.due is not None else State.QUEUED,
        reason=headers.reason,
        payload=_payload(message, actors) if message else None,
    )


def _payload(message: Message[Any], actors: Mapping[str, Actor[Any, Any]]) -> Any:
    actor = actors.get(message.actor_name)
    if isinstance(actor, JobActor):
        try:
            return actor.payload.check(actor.payload.bind(message.args, message.kwargs))
        except PayloadMismatch:  # the run will say so
            return None
    return message.kwargs
