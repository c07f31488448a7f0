"""The actor that a declaration makes, and the same with options for sending."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

import dramatiq
from dramatiq import Message
from pydantic import BaseModel

from callboard import envelope
from callboard.actor.options import PLAIN, GivenOptions, SendOptions, send_options
from callboard.actor.recipient import Recipient
from callboard.cron import Cron
from callboard.errors import InvalidPayload, Permanent
from callboard.payload import Payload, PayloadMismatch
from callboard.versions import CannotUpcast, Fields, Step, upcast

if TYPE_CHECKING:
    from callboard.brokers.base import Broker

P = ParamSpec("P")
R = TypeVar("R")


class JobActor(dramatiq.Actor[P, R]):
    """A function that does jobs. Call it to run it here and now; `send` it to have it run by a worker.

    Attributes:
        category: The name of the module it is declared in.
        payload: What it accepts.
        payload_version: The version of that; a worker parks jobs of a later one.
        steps: How payloads of earlier versions become such, by the version that each starts from.
        recipient: What whoever sends to it has to know of it.
    """

    broker: Broker

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        broker: dramatiq.Broker,
        actor_name: str,
        queue_name: str,
        priority: int,
        options: dict[str, Any],
        category: str,
        payload: Payload,
        payload_version: int,
        steps: Mapping[int, Step] | None = None,
    ) -> None:
        self.category = category
        self.payload = payload
        self.payload_version = payload_version
        self.steps = dict(steps or {})
        super().__init__(
            _checked(fn, payload),
            broker=broker,
            actor_name=actor_name,
            queue_name=queue_name,
            priority=priority,
            options=options,
        )
        self.recipient = Recipient(
            self.broker, actor_name, queue_name, category, payload_version, self.options.get("expires")
        )
        self.__doc__ = fn.__doc__

    def using(self, **options: Unpack[GivenOptions]) -> Sending[P, R]:
        """The same actor, for jobs with other options.

        Args:
            priority: Instead of the actor's own.
            delay: Start after so long. Up to 300 days.
            at: Start at this moment; aware, up to 300 days ahead.
            expires: Don't start after this moment, or so long from now.
            unique: A key. While a job that has it hasn't ended, sending another with it queues nothing,
                and returns a message with the id of the first.
            tags: Words to find the job by.
            job_id: Its id, instead of a new one: 1 to 128 of letters, digits, `.`, `_`, `:` and `-`.
            unique_for: The key lasts so long from the send, whether the job has ended or not.
            unique_until: 'started' gives the key back when a run starts.

        Raises:
            ValueError: If the options contradict each other, or lie outside their limits.
        """
        return Sending(self, send_options(**options))

    def upcast(self, args: Sequence[Any], fields: Fields, *, version: int) -> Fields:
        """The payload of a message of an earlier version, as one of today's, unchecked.

        Raises:
            CannotUpcast: With the reason.
            PayloadMismatch: If positional arguments don't fit the actor's function.
        """
        if self.steps and args:
            raise CannotUpcast("it has positional arguments, and the steps take fields by name")
        bound = dict(self.payload.bind(tuple(args), fields))
        return upcast(bound, self.steps, start=version, end=self.payload_version)

    # -- sending -------------------------------------------------------------------------------------------

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """Queue a job. When this returns, the job is safe; its id is the message's `message_id`.

        Raises:
            InvalidPayload: The arguments don't fit. Nothing was queued.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
        """
        return self.recipient.send(PLAIN, args, kwargs)

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """`send` without blocking the event loop.

        If the awaiting task is cancelled, the job may be queued or not.
        """
        return await self.recipient.send_async(PLAIN, args, kwargs)

    def send_many(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """Queue many jobs in one go; all are safe when this returns.

        Args:
            payloads: For each job a mapping of its arguments, or an instance of its model.

        Raises:
            InvalidPayload: One doesn't fit. None was queued.
            PartlySent: Some were not queued; the error has their ids.
        """
        return self.recipient.send_many(PLAIN, payloads)

    async def send_many_async(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """`send_many` without blocking the event loop."""
        return await self.recipient.send_many_async(PLAIN, payloads)

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """A checked message that isn't sent yet, for pipelines and groups.

        Raises:
            InvalidPayload: If the arguments don't fit.
        """
        return self._checked_message(PLAIN, args, kwargs)

    def partial(self, **fields: Any) -> Message[R]:
        """A message with some of the arguments, to be completed by the result of the job before it in a
        pipeline. It is checked when it is complete."""
        return self.recipient.message(PLAIN, (), fields)

    def _checked_message(
        self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Message[R]:
        job_id = options.job_id or envelope.new_job_id()
        try:
            fields = self.payload.to_wire(self.payload.check(self.payload.bind(args, kwargs)))
        except PayloadMismatch as error:
            raise InvalidPayload(f"'{self.actor_name}': {error}", job_id=job_id) from error
        return self.recipient.message(replace(options, job_id=job_id), (), fields)

    # -- Dramatiq's ways to send ---------------------------------------------------------------------------

    def message_with_options(
        self, *, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Message[R]:
        message = super().message_with_options(args=args, kwargs=kwargs, **options)
        object.__setattr__(message, "message_id", envelope.new_job_id())
        object.__setattr__(message, "message_timestamp", int(self.broker.clock() * 1000))
        return message

    def send_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        **options: Any,
    ) -> Message[R]:
        """Dramatiq's way to send with options.

        With `scheduled_at` alone, on an actor that has a schedule, as periodiq calls it, it sends the job of the tick
        at or before that moment, unless that is sent: however often this is called, by any number of processes.

        Raises:
            ValueError: `scheduled_at` is no moment with a time zone.
            SendError: See `send`.
        """
        moment = options.get("scheduled_at")
        if args or kwargs or delay or moment is None or not isinstance(self.options.get("periodic"), Cron):
            return super().send_with_options(args=args, kwargs=kwargs, delay=delay, **options)
        return self.broker.send_tick(self, datetime.fromisoformat(moment))


class Sending(Generic[P, R]):
    """An actor with options for the jobs to be sent. Made by `using`; has its own `using` to add more."""

    def __init__(self, actor: JobActor[P, R], options: SendOptions) -> None:
        self._actor = actor
        self._options = options

    def using(self, **options: Unpack[GivenOptions]) -> Sending[P, R]:
        """The same, with other options replaced."""
        return Sending(self._actor, send_options(self._options, **options))

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.message`. A delay isn't part of a message: it is taken by `send` alone."""
        return self._actor._checked_message(self._options, args, kwargs)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.send`."""
        return self._actor.recipient.send(self._options, args, kwargs)

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.send_async`."""
        return await self._actor.recipient.send_async(self._options, args, kwargs)

    def send_many(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """See `JobActor.send_many`."""
        return self._actor.recipient.send_many(self._options, payloads)

    async def send_many_async(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """See `JobActor.send_many_async`."""
        return await self._actor.recipient.send_many_async(self._options, payloads)


def _checked(fn: Callable[..., Any], payload: Payload) -> Callable[..., Any]:
    """The function behind its payload: checks what came, then calls."""

    def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return payload.check(payload.bind(args, kwargs))
        except PayloadMismatch as error:
            raise Permanent(f"the payload doesn't fit: {error}") from error

    if iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            return await payload.call(fn, arguments(args, kwargs))

        return run_async

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return payload.call(fn, arguments(args, kwargs))

    return run
