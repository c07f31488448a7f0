"""`actor`, as a `broker.py` exports it: makes actors of functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

import dramatiq
from pydantic import BaseModel

from callboard.actor.job_actor import JobActor
from callboard.actor.model_actor import ModelActor
from callboard.actor.options import priority_of
from callboard.cron import Cron
from callboard.errors import DeclarationError
from callboard.isolation import isolation_of
from callboard.payload import Payload, PayloadMismatch
from callboard.queues import Priority, is_category, queue_for
from callboard.retry import RetryPolicy
from callboard.versions import Step, checked_steps

if TYPE_CHECKING:
    from callboard.brokers.base import Broker

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)


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
        priority = priority_of(priority)
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
