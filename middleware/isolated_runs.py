"""Runs the bodies of isolated actors in processes of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dramatiq import Actor, Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.errors import DeclarationError
from callboard.isolation import isolation_of
from callboard.loggers import get_logger
from callboard.metrics.runners import offered

if TYPE_CHECKING:
    from callboard.worker.isolation.pool import Pool

log = get_logger(__name__)


class IsolatedRuns(Middleware):
    """What `@actor(isolated=...)` asks for; see `callboard.worker.isolation`.

    Where no worker has booted, as in tests without one, the bodies run in the caller's own process.
    """

    idle_without: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._names: dict[str, str] = {}  # actor -> its name in its module

    @property
    def actor_options(self) -> set[str]:
        return {"isolated"}

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        from callboard.worker.isolation.pool import Pool  # who only sends needs none of it

        assert isinstance(broker, CallboardBroker)
        isolated = [
            actor
            for actor in broker.actors.values()
            if isolation_of(actor.options.get("isolated")) is not None
        ]
        self._names = {}
        self._pool = None
        if not isolated:
            return
        if not sys.platform.startswith("linux"):
            log.warning("isolated jobs run in the worker's own process: they need Linux")
            return
        for actor in isolated:
            try:
                self._names[actor.actor_name] = _name_in_module(actor)
            except DeclarationError:
                log.exception("an actor's jobs can't run")
        modules = (actor.fn.__module__ for actor in isolated if actor.actor_name in self._names)
        self._pool = Pool(modules, offered())

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def before_process_message(self, broker: Broker, message: Any) -> None:
        pool = self._pool
        if pool is None:
            return
        from callboard.worker.isolation.supervision import IsolatedBody

        assert isinstance(broker, CallboardBroker)
        actor = broker.actors[message.actor_name]
        isolation = isolation_of(actor.options.get("isolated"))
        if isolation is None:
            return
        options = message.options
        message.run.move(
            IsolatedBody(
                pool,
                broker,
                isolation,
                module=actor.fn.__module__,
                name=self._names.get(actor.actor_name) or _name_in_module(actor),
                wants_result=bool(actor.options.get("store_results"))
                or bool(actor.options.get("on_success"))
                or len(options) > ("callboard" in options),
                stopping=broker.stopping,
            )
        )


def _name_in_module(actor: Actor[Any, Any]) -> str:
    """How another process finds an actor.

    Raises:
        DeclarationError: If it can't.
    """
    module = actor.fn.__module__
    if module != "__main__" and module in sys.modules:
        for name, value in vars(sys.modules[module]).items():
            if value is actor:
                return name
    raise DeclarationError(
        f"'{actor.actor_name}' is isolated, and another process can't find it: it has to be at the top level of a "
        f"module that can be imported, and in '{module}' it isn't"
    )
