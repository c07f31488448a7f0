"""What a broker is made of: its driver, its store, its clock, and the actors and queues declared on it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import Middleware

from callboard import envelope, queues
from callboard.actor import JobActor
from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.driver import Driver
from callboard.context import running_job
from callboard.envelope import Signer
from callboard.errors import SettingsError, UnknownActor
from callboard.loggers import get_logger
from callboard.store.base import Store
from callboard.store.control import ControlWatch
from callboard.store.recorder import Recorder

if TYPE_CHECKING:
    from dramatiq import Actor

log = get_logger(__name__)


class Core(dramatiq.Broker):
    """Holds the driver, the store and the clock, and what is declared on them.

    Args:
        driver: Where messages wait.
        store: What is known about jobs; without one nothing is recorded.
        middleware: What surrounds every job, outermost first.
        send_deadline: Seconds within which a send is confirmed, or raises.
        max_message_bytes: The largest message that a send accepts.
        park_deadline: Seconds that a job waits for a worker that knows it, before it is dead.
        signer: Signs what is sent, and distrusts what isn't signed.
        one_host: Whether all processes that use this broker run on this host.
        clock: Seconds since the epoch.

    Raises:
        SettingsError: Other hosts can reach the messages, and not the store.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        store: Store | None = None,
        middleware: Sequence[Middleware] = (),
        send_deadline: float = 5.0,
        max_message_bytes: int = 262_144,
        park_deadline: float = 3600.0,
        signer: Signer | None = None,
        one_host: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not one_host:
            _refuse_local_store(driver, store)
        self._attach(driver, store, clock)
        self.max_message_bytes = max_message_bytes
        self._send_deadline = send_deadline
        self._park_deadline = park_deadline
        self._signer = signer
        self.running: dict[int, ClaimedMessage] = {}  # thread -> what it runs
        self.with_checkpoint: set[str] = set()  # ids of jobs that run here, and have one in the store
        self._hooks: dict[str | tuple[str, str], list[Callable[..., Any]]] = {}
        self._known_options: frozenset[str] = frozenset()
        super().__init__(middleware=list(middleware))

    def _attach(self, driver: Driver, store: Store | None, clock: Callable[[], float]) -> None:
        self.driver = driver
        self.store = store
        self.recorder = Recorder(store) if store is not None else None
        self.control = ControlWatch(store) if store is not None else None
        self.clock = clock
        self.stopping = threading.Event()
        driver.declare(queues.QUARANTINE)

    @contextmanager
    def replaced(self, driver: Driver, *, store: Store | None, clock: Callable[[], float]) -> Iterator[None]:
        """Work with another driver, store and clock until the block ends. For tests.

        What middleware keeps in the store goes to the other one meanwhile. Queues and actors that were
        declared in the block stay declared, but for actors that were defined inside a function.
        """
        before = {
            **vars(self),
            "middleware": list(self.middleware),
            "actor_options": set(self.actor_options),
            "_hooks": {},
        }
        own_driver, own_store, own_actors = self.driver, self.store, set(self.actors)
        self._attach(driver, store, clock)
        self._declare_queues_on(driver)
        self._hand_middleware(own_store, store)
        try:
            yield
        finally:
            self._hand_middleware(store, own_store)
            vars(self).update(before)
            for name in self.actors.keys() - own_actors:
                if _is_local(self.actors[name].fn):
                    del self.actors[name]
            self._declare_queues_on(own_driver)

    def _declare_queues_on(self, driver: Driver) -> None:
        for queue_name in self.queues:
            driver.declare(queue_name)
            driver.declare(queues.dead_queue(queues.category_of(queue_name)))

    def _hand_middleware(self, old: Store | None, new: Store | None) -> None:
        """Change a store for another where middleware holds it: in itself, or in a backend that it holds."""
        if old is None:
            return
        for middleware in self.middleware:
            for holder in (middleware, *vars(middleware).values()):
                for name, value in list(getattr(holder, "__dict__", {}).items()):
                    if value is old:
                        setattr(holder, name, new)

    def add_middleware(
        self,
        middleware: Middleware,
        *,
        before: type[Middleware] | None = None,
        after: type[Middleware] | None = None,
    ) -> None:
        super().add_middleware(middleware, before=before, after=after)
        self._hooks = {}
        self._known_options = frozenset(self.actor_options) | envelope.KNOWN_OPTIONS

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        self.emit_before("declare_actor", actor)
        if isinstance(actor, JobActor):
            for priority in queues.Priority:
                self.declare_queue(queues.queue_for(actor.category, priority))
        self.declare_queue(actor.queue_name)
        actor.fn = _inside_run(actor.fn)
        self.actors[actor.actor_name] = actor
        self.emit_after("declare_actor", actor)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = None
        self.driver.declare(queue_name)
        self.driver.declare(queues.dead_queue(queues.category_of(queue_name)))
        self.emit_after("declare_queue", queue_name)

    def verify(self, queue: str, body: bytes, signature: str) -> None:
        """Check a body's signature as a worker of this broker would; without keys, all is trusted.

        Raises:
            Unreadable: If it is missing, of an unknown key, or wrong.
        """
        if self._signer is not None:
            self._signer.verify(queue, body, signature)

    def find_actor(self, name: str) -> Actor[Any, Any]:
        """An actor by its name, written with dashes or underscores.

        Raises:
            UnknownActor: Suggesting the nearest.
        """
        for spelling in (name, name.replace("_", "-"), name.replace("-", "_")):
            if spelling in self.actors:
                return self.actors[spelling]
        raise UnknownActor(name, self.actors)


def _refuse_local_store(driver: Driver, store: Store | None) -> None:
    """Workers elsewhere would each keep a file of their own: what one knows, pauses and cancels, no other sees."""
    if driver.networked and store is not None and store.path is not None:
        raise SettingsError(
            f"messages wait in {driver.name}, which other hosts can reach, but the store is a file on this one "
            f"({store.path}); set CALLBOARD_STORE_URL=redis://HOST, or CALLBOARD_ONE_HOST=1 if everything runs on "
            "this host"
        )


def _inside_run(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def body(*args: Any, **kwargs: Any) -> Any:
        run = running_job()
        return fn(*args, **kwargs) if run is None else run.call(fn, args, kwargs)

    return body


def _is_local(fn: Callable[..., Any]) -> bool:
    return "<locals>" in getattr(fn, "__qualname__", "")
