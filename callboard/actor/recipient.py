"""Whom jobs are sent to: the one way that all sends take to the broker, whether the actor is imported or only named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from pydantic import BaseModel

from callboard import envelope
from callboard.actor.options import SendOptions
from callboard.queues import queue_for

if TYPE_CHECKING:
    from callboard.brokers.base import Broker

_MADE_AT_ONCE = 256  # messages


@dataclass(frozen=True, slots=True)
class Recipient:
    """An actor, as far as whoever sends to it has to know it. Makes its messages, and sends them.

    Messages are unchecked until the broker queues them.

    Attributes:
        broker: Where it is declared, or where its jobs go.
        actor_name: As it is declared.
        queue_name: For jobs without a priority of their own.
        category: What its queues are called after; None if it has that one queue.
        payload_version: The version of what it is sent.
        expires: Its jobs don't start after so long, unless a send says otherwise.
    """

    broker: Broker
    actor_name: str
    queue_name: str
    category: str | None = None
    payload_version: int = 1
    expires: timedelta | None = None

    def send(self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Message[Any]:
        """Queue a job; see `JobActor.send`."""
        message = self.message(options, args, kwargs)
        return self.broker.enqueue(message, delay=options.wait(self.broker.clock))

    async def send_async(
        self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Message[Any]:
        """`send` without blocking the event loop."""
        message = self.message(options, args, kwargs)
        return await self.broker.enqueue_async(message, delay=options.wait(self.broker.clock))

    def send_many(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> list[Message[Any]]:
        """Queue many jobs in one go; see `JobActor.send_many`."""
        messages = self.messages(options, payloads)
        return self.broker.enqueue_many(messages, delay=options.wait(self.broker.clock))

    async def send_many_async(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> list[Message[Any]]:
        """`send_many` without blocking the event loop."""
        messages = self.messages(options, payloads)
        return await self.broker.enqueue_many_async(messages, delay=options.wait(self.broker.clock))

    def message(self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Message[Any]:
        """A message that isn't sent yet. A delay is no part of it."""
        return envelope.new_message(
            self._queue(options),
            self.actor_name,
            args,
            kwargs if type(kwargs) is dict else dict(kwargs),
            {"callboard": self._extras(options)},
            options.job_id or envelope.new_job_id(),
            self._now_ms(),
        )

    def messages(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> Iterator[Message[Any]]:
        """Messages for many jobs, made as they are asked for.

        Raises:
            ValueError: More than one job is to have one id.
        """
        rest: Iterator[Mapping[str, Any] | BaseModel]
        if isinstance(payloads, list | tuple):
            rest = iter(payloads)
        else:  # a generator may fill one mapping again and again
            rest = (dict(item) if isinstance(item, Mapping) else item for item in payloads)
        while items := list(islice(rest, _MADE_AT_ONCE)):
            if options.job_id and len(items) > 1:
                raise ValueError(f"job_id={options.job_id!r} names one job, and there are more to send")
            ids = [options.job_id] if options.job_id else envelope.new_job_ids(len(items))
            queue, extras, now = self._queue(options), self._extras(options), self._now_ms()
            for job_id, item in zip(ids, items, strict=True):
                args: tuple[Any, ...] = ()
                if type(item) is dict:
                    kwargs = item
                elif isinstance(item, BaseModel):
                    args, kwargs = (item,), {}
                else:
                    kwargs = dict(item)
                own = {"callboard": {**extras, "tags": list(options.tags)} if options.tags else extras.copy()}
                yield envelope.new_message(queue, self.actor_name, args, kwargs, own, job_id, now)

    def _queue(self, options: SendOptions) -> str:
        if options.priority is None or self.category is None:
            return self.queue_name
        return queue_for(self.category, options.priority)

    def _extras(self, options: SendOptions) -> dict[str, Any]:
        return options.extras(
            self.actor_name,
            payload_version=self.payload_version,
            expires=self.expires,
            clock=self.broker.clock,
        )

    def _now_ms(self) -> int:
        return int(self.broker.clock() * 1000)
