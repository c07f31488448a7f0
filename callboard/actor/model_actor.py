"""What a type checker sees of an actor with a model: it is sent an instance, or the model's fields by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, overload

from dramatiq import Message
from pydantic import BaseModel

from callboard.actor.job_actor import JobActor
from callboard.actor.options import GivenOptions

Q = ParamSpec("Q")
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)


class ModelActor(JobActor[[M], R], Generic[M, Q, R]):
    """A `JobActor` whose payload is a pydantic model: `send(SendEmail(...))` and `send(to=...)` are both typed.

    At run time it is a JobActor; the overloads are what a type checker sees.
    """

    if TYPE_CHECKING:

        def using(  # type: ignore[override]  # the same call, sending models
            self, **options: Unpack[GivenOptions]
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


class ModelSending(Generic[M, Q, R]):
    """`Sending` for an actor with a model: takes an instance, or its fields by name."""

    if TYPE_CHECKING:

        def using(self, **options: Unpack[GivenOptions]) -> ModelSending[M, Q, R]: ...

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
