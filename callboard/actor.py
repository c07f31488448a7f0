"""Declaring a job, and sending it.

    @actor(priority=Priority.HIGH, retries=5)
    def send_invoice(invoice_id: int, to: str) -> None: ...

    send_invoice.send(invoice_id=42, to="ada@example.org")
    send_invoice.using(delay=timedelta(hours=1)).send(42, "ada@example.org")

`actor` comes from the application's `broker.py`, and there is no other way in: what it declares is bound
to that broker and never to Dramatiq's global one. The typed parameters are the payload. Where versions,
validators or secrets are wanted, a pydantic model is named: `@actor(SendEmail)`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from itertools import islice
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import dramatiq
from dramatiq import Message
from pydantic import BaseModel

from callboard import envelope
from callboard.cron import Cron
from callboard.errors import MAX_WAIT, DeclarationError, InvalidPayload, Permanent, printable
from callboard.isolation import isolation_of
from callboard.payload import Payload, PayloadMismatch
from callboard.queues import Priority, is_category, queue_for
from callboard.retry import RetryPolicy
from callboard.versions import CannotUpcast, Fields, Step, checked_steps, upcast

if TYPE_CHECKING:
    from callboard.brokers.base import Broker

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)

UniqueUntil = Literal["started", "ended"]

_MADE_AT_ONCE = 256  # messages


class JobActor(dramatiq.Actor[P, R]):
    """A function that does jobs. Call it to run it here and now; `send` it to have it run by a worker.

    Attributes:
        category: The name of the module it is declared in.
        payload: What it accepts.
        payload_version: The version of that; a worker parks jobs of a later one.
        steps: How payloads of earlier versions become such, by the version that each starts from.
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
        self.__doc__ = fn.__doc__

    def using(
        self,
        *,
        priority: Priority | None = None,
        delay: timedelta | None = None,
        at: datetime | None = None,
        expires: timedelta | datetime | None = None,
        unique: str | None = None,
        tags: Iterable[str] = (),
        job_id: str | None = None,
        unique_for: timedelta | None = None,
        unique_until: UniqueUntil = "ended",
    ) -> Sending[P, R]:
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
        checked = send_options(
            priority,
            delay,
            at,
            expires,
            unique,
            tags,
            job_id,
            unique_for=unique_for,
            unique_until=unique_until,
        )
        return Sending(self, checked)

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

    def message_with_options(
        self, *, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Message[R]:
        message = super().message_with_options(args=args, kwargs=kwargs, **options)
        object.__setattr__(message, "message_id", envelope.new_job_id())
        object.__setattr__(message, "message_timestamp", self._now_ms())
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

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """A checked message that isn't sent yet, for pipelines and groups.

        Raises:
            InvalidPayload: If the arguments don't fit.
        """
        return self._message(_PLAIN, args, kwargs)

    def partial(self, **fields: Any) -> Message[R]:
        """A message with some of the arguments, to be completed by the result of the job before it in a
        pipeline. It is checked when it is complete."""
        return self._message(_PLAIN, (), fields, check=False)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """Queue a job. When this returns, the job is safe; its id is the message's `message_id`.

        Raises:
            InvalidPayload: The arguments don't fit. Nothing was queued.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
        """
        return self._send(_PLAIN, args, kwargs)

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """`send` without blocking the event loop.

        If the awaiting task is cancelled, the job may be queued or not.
        """
        return await self._send_async(_PLAIN, args, kwargs)

    def send_many(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """Queue many jobs in one go; all are safe when this returns.

        Args:
            payloads: For each job a mapping of its arguments, or an instance of its model.

        Raises:
            InvalidPayload: One doesn't fit. None was queued.
            PartlySent: Some were not queued; the error has their ids.
        """
        return self._send_many(_PLAIN, payloads)

    async def send_many_async(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """`send_many` without blocking the event loop."""
        return await self._send_many_async(_PLAIN, payloads)

    # -- the common way of all sends -----------------------------------------------------------------------

    def _send(self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Message[R]:
        message = self._message(options, args, kwargs, check=False)
        sent: Message[R] = self.broker.enqueue(message, delay=options.wait(self.broker.clock))
        return sent

    async def _send_async(
        self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Message[R]:
        message = self._message(options, args, kwargs, check=False)
        sent: Message[R] = await self.broker.enqueue_async(message, delay=options.wait(self.broker.clock))
        return sent

    def _send_many(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> list[Message[R]]:
        messages = self._messages(options, payloads)
        return self.broker.enqueue_many(messages, delay=options.wait(self.broker.clock))

    async def _send_many_async(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> list[Message[R]]:
        messages = self._messages(options, payloads)
        return await self.broker.enqueue_many_async(messages, delay=options.wait(self.broker.clock))

    def _messages(
        self, options: SendOptions, payloads: Iterable[Mapping[str, Any] | BaseModel]
    ) -> Iterator[Message[R]]:
        """Messages that aren't checked yet, made as they are asked for."""
        rest = iter(payloads)
        while items := list(islice(rest, _MADE_AT_ONCE)):
            ids = [options.job_id] * len(items) if options.job_id else envelope.new_job_ids(len(items))
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

    def _message(
        self, options: SendOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool = True
    ) -> Message[R]:
        job_id = options.job_id or envelope.new_job_id()
        fields = kwargs if type(kwargs) is dict else dict(kwargs)
        if check:
            try:
                fields = self.payload.to_wire(self.payload.check(self.payload.bind(args, kwargs)))
                args = ()
            except PayloadMismatch as error:
                raise InvalidPayload(f"'{self.actor_name}': {error}", job_id=job_id) from error
        return envelope.new_message(
            self._queue(options),
            self.actor_name,
            args,
            fields,
            {"callboard": self._extras(options)},
            job_id,
            self._now_ms(),
        )

    def _queue(self, options: SendOptions) -> str:
        return queue_for(self.category, options.priority) if options.priority else self.queue_name

    def _extras(self, options: SendOptions) -> dict[str, Any]:
        return options.extras(
            self.actor_name,
            payload_version=self.payload_version,
            expires=self.options.get("expires"),
            clock=self.broker.clock,
        )

    def _now_ms(self) -> int:
        return int(self.broker.clock() * 1000)


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How a job is to be sent; see `JobActor.using`."""

    priority: Priority | None = None
    delay: timedelta | None = None
    at: datetime | None = None
    expires: timedelta | datetime | None = None
    unique: str | None = None
    tags: tuple[str, ...] = ()
    job_id: str | None = None
    unique_for: timedelta | None = None
    unique_until: UniqueUntil = "ended"

    def wait(self, clock: Callable[[], float] = time.time) -> timedelta | None:
        """How long from now until it may start."""
        return self.at - datetime.fromtimestamp(clock(), UTC) if self.at is not None else self.delay

    def extras(
        self,
        actor_name: str,
        *,
        payload_version: int = 1,
        expires: timedelta | None = None,
        clock: Callable[[], float] = time.time,
    ) -> dict[str, Any]:
        """What a message's `options.callboard` says; `expires` is the actor's own."""
        extras: dict[str, Any] = {"v": envelope.VERSION}
        if payload_version != 1:
            extras["payload_version"] = payload_version
        expires_at = self.expires if self.expires is not None else expires
        if expires_at is not None:
            extras["expires"] = (
                expires_at.timestamp()
                if isinstance(expires_at, datetime)
                else clock() + expires_at.total_seconds()
            )
        if self.tags:
            extras["tags"] = list(self.tags)
        if self.unique is not None:
            extras["unique"] = f"{actor_name}:{self.unique}"
        if self.unique_for is not None:
            extras["unique_for"] = self.unique_for.total_seconds()
        if self.unique_until == "started":
            extras["unique_until"] = "started"
        return extras


_PLAIN = SendOptions()


def _check_uniqueness(unique: str | None, unique_for: timedelta | None, unique_until: str) -> None:
    if unique_until not in ("started", "ended"):
        raise ValueError(f"a job is unique until it has 'started' or 'ended', not {unique_until!r}")
    if unique_for is None and unique_until == "ended":
        return
    if unique is None:
        raise ValueError("unique_for and unique_until say how long a unique= key lasts, and there is none")
    if unique_for is not None and unique_until == "started":
        raise ValueError("a key lasts for a time, unique_for, or until the job has started, not both")
    if unique_for is not None and not timedelta(0) < unique_for <= MAX_WAIT:
        raise ValueError(f"a key lasts up to {MAX_WAIT.days} days, and can't last {unique_for}")


def send_options(
    priority: Priority | None,
    delay: timedelta | None,
    at: datetime | None,
    expires: timedelta | datetime | None,
    unique: str | None,
    tags: Iterable[str],
    job_id: str | None,
    *,
    unique_for: timedelta | None = None,
    unique_until: UniqueUntil = "ended",
) -> SendOptions:
    """Checked options.

    Raises:
        ValueError: If they contradict each other, or lie outside their limits.
    """
    if delay is not None and at is not None:
        raise ValueError("a job starts after a delay or at a moment: give one of delay and at")
    for name, moment in (("at", at), ("expires", expires)):
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise ValueError(f"{name}={moment} has no time zone; use an aware datetime")
    tags = (tags,) if isinstance(tags, str) else tuple(tags)
    if any(not isinstance(tag, str) or not 0 < len(tag) <= 64 for tag in tags):
        raise ValueError(f"a tag is a text of 1 to 64 characters, and not so in {tags!r}")
    if unique is not None and not (isinstance(unique, str) and 0 < len(printable(unique)) <= 256):
        raise ValueError(f"a unique key is a text of 1 to 256 characters, and not {unique!r}")
    _check_uniqueness(unique, unique_for, unique_until)
    return SendOptions(
        _priority(priority) if priority is not None else None,
        delay,
        at,
        expires,
        unique,
        tags,
        job_id,
        unique_for,
        unique_until,
    )


class Sending(Generic[P, R]):
    """An actor with options for the jobs to be sent. Made by `using`; has its own `using` to add more."""

    def __init__(self, actor: JobActor[P, R], options: SendOptions) -> None:
        self._actor = actor
        self._options = options

    def using(self, **options: Any) -> Sending[P, R]:
        """The same, with other options replaced."""
        return Sending(self._actor, replace(self._options, **options))

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.message`. A delay isn't part of a message: it is taken by `send` alone."""
        return self._actor._message(self._options, args, kwargs)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.send`."""
        return self._actor._send(self._options, args, kwargs)

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """See `JobActor.send_async`."""
        return await self._actor._send_async(self._options, args, kwargs)

    def send_many(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """See `JobActor.send_many`."""
        return self._actor._send_many(self._options, payloads)

    async def send_many_async(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]:
        """See `JobActor.send_many_async`."""
        return await self._actor._send_many_async(self._options, payloads)


class ModelSending(Generic[M, Q, R]):
    """`Sending` for an actor with a model: takes an instance, or its fields by name."""

    if TYPE_CHECKING:

        def using(self, **options: Any) -> ModelSending[M, Q, R]: ...

        @overload
        def message(self, payload: M, /) -> Message[R]: ...
        @overload
        def message(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        def message(self, *args: Any, **fields: Any) -> Message[R]: ...

        @overload
        def send(self, payload: M, /) -> Message[R]: ...
        @overload
        def send(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        def send(self, *args: Any, **fields: Any) -> Message[R]: ...

        @overload
        async def send_async(self, payload: M, /) -> Message[R]: ...
        @overload
        async def send_async(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        async def send_async(self, *args: Any, **fields: Any) -> Message[R]: ...

        def send_many(self, payloads: Iterable[Mapping[str, Any] | BaseModel]) -> list[Message[R]]: ...
        async def send_many_async(
            self, payloads: Iterable[Mapping[str, Any] | BaseModel]
        ) -> list[Message[R]]: ...


class ModelActor(JobActor[[M], R], Generic[M, Q, R]):
    """A `JobActor` whose payload is a pydantic model: `send(SendEmail(...))` and `send(to=...)` are both typed.

    At run time it is a JobActor; the overloads are what a type checker sees.
    """

    if TYPE_CHECKING:

        def using(  # type: ignore[override]  # the same call, sending models
            self,
            *,
            priority: Priority | None = None,
            delay: timedelta | None = None,
            at: datetime | None = None,
            expires: timedelta | datetime | None = None,
            unique: str | None = None,
            tags: Iterable[str] = (),
            job_id: str | None = None,
            unique_for: timedelta | None = None,
            unique_until: UniqueUntil = "ended",
        ) -> ModelSending[M, Q, R]: ...

        @overload
        def message(self, payload: M, /) -> Message[R]: ...
        @overload
        def message(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        def message(self, *args: Any, **fields: Any) -> Message[R]: ...

        @overload
        def send(self, payload: M, /) -> Message[R]: ...
        @overload
        def send(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        def send(self, *args: Any, **fields: Any) -> Message[R]: ...

        @overload
        async def send_async(self, payload: M, /) -> Message[R]: ...
        @overload
        async def send_async(self, *args: Q.args, **fields: Q.kwargs) -> Message[R]: ...
        async def send_async(self, *args: Any, **fields: Any) -> Message[R]: ...


class _Decorate(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> JobActor[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> JobActor[P, R]: ...


class _DecorateModel(Protocol[M, Q]):
    @overload
    def __call__(self, fn: Callable[[M], Awaitable[R]], /) -> ModelActor[M, Q, R]: ...
    @overload
    def __call__(self, fn: Callable[[M], R], /) -> ModelActor[M, Q, R]: ...


class ActorDecorator:
    """The `actor` of a `broker.py`: declares functions as actors on one broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    # A bare @actor on a function that returns a model looks like @actor(model) to a type checker, not to Python.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        model: Callable[Q, M],
        /,
        *,
        name: str | None = None,
        category: str | None = None,
        priority: Priority = Priority.MEDIUM,
        retries: int | RetryPolicy | None = None,
        time_limit: timedelta | None = None,
        expires: timedelta | None = None,
        version: int = 1,
        upcast: Mapping[int, Step] | None = None,
        **options: Any,
    ) -> _DecorateModel[M, Q]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> JobActor[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> JobActor[P, R]: ...
    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        category: str | None = None,
        priority: Priority = Priority.MEDIUM,
        retries: int | RetryPolicy | None = None,
        time_limit: timedelta | None = None,
        expires: timedelta | None = None,
        version: int = 1,
        upcast: Mapping[int, Step] | None = None,
        **options: Any,
    ) -> _Decorate: ...
    def __call__(
        self,
        model: Any = None,
        /,
        *,
        name: str | None = None,
        category: str | None = None,
        priority: Priority = Priority.MEDIUM,
        retries: int | RetryPolicy | None = None,
        time_limit: timedelta | None = None,
        expires: timedelta | None = None,
        version: int = 1,
        upcast: Mapping[int, Step] | None = None,
        **options: Any,
    ) -> Any:
        """Declare an actor.

        Args:
            model: The pydantic model that is the function's one parameter, if there is one.
            name: Instead of the function's own, in which `_` becomes `-`.
            category: Instead of the module's name.
            priority: Of its jobs, unless a send says otherwise.
            retries: How often a failed job is tried again, or a whole `RetryPolicy`.
            time_limit: A run is ended after so long.
            expires: A job that hasn't started after so long doesn't start any more.
            version: The version of the payload; raise it when the payload changes in a way that an older
                worker can't run.
            upcast: How payloads of earlier versions are brought up to date: see `callboard.versions`.
            **options: What the middleware takes: `store_results`, `on_success`, `periodic`, ...

        Raises:
            DeclarationError: If the actor can't work as declared.
        """
        if isinstance(model, FunctionType):  # a bare @actor
            return self()(model)
        if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise DeclarationError(
                f"@actor takes a pydantic model, a function or keyword options, not {model!r}"
            )
        priority = _priority(priority)
        for option, value in (("time_limit", time_limit), ("expires", expires)):
            if value is not None and not (isinstance(value, timedelta) and value > timedelta(0)):
                raise DeclarationError(
                    f"{option}={value!r} must be a timedelta above zero, as timedelta(seconds=5)"
                )
        if isinstance(retries, int):
            if isinstance(retries, bool) or retries < 0:
                raise DeclarationError(f"retries={retries!r} must be a number from 0, or a RetryPolicy")
            retries = RetryPolicy(attempts=retries + 1)
        if "periodic" in options and not isinstance(options["periodic"], Cron):
            raise DeclarationError(
                f"periodic={options['periodic']!r} must be a schedule, as cron('0 3 * * *')"
            )
        isolation_of(options.get("isolated"))
        given = {"retries": retries, "time_limit": time_limit, "expires": expires}
        options |= {option: value for option, value in given.items() if value is not None}

        def declare(fn: Callable[..., Any]) -> JobActor[..., Any]:
            return self._declare(fn, model, name, category, priority, version, upcast, options)

        return declare

    def _declare(
        self,
        fn: Callable[..., Any],
        model: type[BaseModel] | None,
        name: str | None,
        category: str | None,
        priority: Priority,
        version: int,
        steps: Mapping[int, Step] | None,
        options: dict[str, Any],
    ) -> JobActor[..., Any]:
        actor_name = name or fn.__name__.replace("_", "-")
        category = category or fn.__module__.rpartition(".")[2].strip("_")
        if not is_category(category):
            raise DeclarationError(
                f"'{actor_name}' is declared in the module '{fn.__module__}', and '{category}' can't be a category: "
                "one has lower case letters, digits, '_' and '-'; pass category=..."
            )
        if unknown := options.keys() - self.broker.actor_options:
            raise DeclarationError(
                f"'{actor_name}' has unknown options: {', '.join(sorted(unknown))}; "
                f"known: {', '.join(sorted(self.broker.actor_options))}"
            )
        for callback in ("on_success", "on_failure", "on_retry_exhausted"):
            if isinstance(options.get(callback), dramatiq.Actor):
                options[callback] = options[callback].actor_name
        payload = Payload(fn, model)
        if options.get("periodic") is not None:
            _check_defaults(actor_name, payload)
        actor_class = cast("type[JobActor[..., Any]]", JobActor if model is None else ModelActor)
        return actor_class(
            fn,
            broker=self.broker,
            actor_name=actor_name,
            queue_name=queue_for(category, priority),
            priority=int(priority),
            options=options,
            category=category,
            payload=payload,
            payload_version=version,
            steps=checked_steps(actor_name, version, steps),
        )


def _check_defaults(actor_name: str, payload: Payload) -> None:
    """An actor that starts by itself is given no arguments."""
    try:
        payload.check({})
    except PayloadMismatch as error:
        raise DeclarationError(f"'{actor_name}' has a schedule, and so needs defaults: {error}") from error


def _priority(given: Any) -> Priority:
    """A priority as it was given, perhaps by its name.

    Raises:
        DeclarationError: If there is none of that name.
    """
    if isinstance(given, str):
        given = Priority.__members__.get(given.upper(), given)
    try:
        return Priority(given)
    except ValueError:
        names = ", ".join(f"Priority.{priority.name}" for priority in Priority)
        raise DeclarationError(f"priority={given!r} is none; there are {names}") from None


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
