"""Feeds the result of a job into the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dramatiq import Broker, Message, middleware

from callboard.actor import JobActor


class Pipelines(middleware.Pipelines):
    """Dramatiq's pipelines, with typed payloads: a result that is a mapping is merged into the next job's
    arguments; any other is appended to them, unless it is None."""

    idle_without = frozenset({"pipe_target"})

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None or message.failed:
            return
        target = message.options.get("pipe_target")
        if target is None:
            return
        if not isinstance(broker.actors.get(target["actor_name"]), JobActor):
            stock: Any = super()  # it has no annotations
            stock.after_process_message(broker, message, result=result, exception=exception)
            return
        following: Message[Any] = Message(**target)
        actor = broker.get_actor(message.actor_name)
        if not (following.options.get("pipe_ignore") or actor.options.get("pipe_ignore")):
            if isinstance(result, Mapping):
                following = following.copy(kwargs={**following.kwargs, **result})
            elif result is not None:
                following = following.copy(args=(*following.args, result))
        broker.enqueue(following, delay=following.options.get("delay"))
