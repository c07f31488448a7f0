"""Sending a job by its actor's name, importing no actor.

    with Client.open("amqp://user:password@queue.example.org/app") as client:
        client.send("send-email", {"to": ["ada@example.org"]}, category="email")

For producers elsewhere: a web application, a script, another service. The rules of sending are the broker's,
and hold here too. Only the payload is first checked by the worker, unless the actor is declared in this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from dramatiq import Actor, Message

from callboard import envelope
from callboard.actor import JobActor, SendOptions, send_options
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.envelope import Signer
from callboard.errors import UnknownActor
from callboard.queues import Priority, is_category, queue_for
from callboard.store import open_store


class Client:
    """Sends jobs to a broker.

    Args:
        broker: The broker; its actors needn't be declared.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    @classmethod
    def open(
        cls,
        url: str,
        *,
        store_url: str | None = None,
        namespace: str = "",
        one_host: bool = False,
        signing_keys: str | None = None,
        send_deadline: float = 5.0,
        max_message_bytes: int = 262_144,
    ) -> Self:
        """A client of its own, without an application's `broker.py`. Connects to nothing before the first send.

        Args:
            url: As CALLBOARD_BROKER_URL: `amqp://...`, `file:FOLDER`.
            store_url: As CALLBOARD_STORE_URL; only unique jobs need it.
            namespace: As CALLBOARD_NAMESPACE.
            one_host: As CALLBOARD_ONE_HOST.
            signing_keys: As CALLBOARD_SIGNING_KEYS.
            send_deadline: Seconds within which a send is confirmed, or raises.
            max_message_bytes: The largest message that is sent.

        Raises:
            SettingsError: One of them is malformed, or other hosts can reach the messages and not the store.
        """
        return cls(
            Broker(
                open_driver(url, namespace=namespace),
                store=open_store(store_url, namespace=namespace) if store_url is not None else None,
                send_deadline=send_deadline,
                max_message_bytes=max_message_bytes,
                signer=Signer.parse(signing_keys) if signing_keys else None,
                one_host=one_host,
            )
        )

    def send(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        category: str | None = None,
        priority: Priority | None = None,
        delay: timedelta | None = None,
        at: datetime | None = None,
        expires: timedelta | datetime | None = None,
        unique: str | None = None,
        tags: Iterable[str] = (),
        job_id: str | None = None,
        payload_version: int = 1,
    ) -> Message[Any]:
        """Queue a job. When this returns, the job is safe; its id is the message's `message_id`.

        Args:
            name: The actor's name, `send-email` or `send_email`.
            payload: Its arguments, as JSON values.
            category: The module that the actor is declared in. Needed where that isn't known here.
            priority: Instead of the actor's own, or of medium where that isn't known here.
            delay: Start after so long.
            at: Start at this moment; aware.
            expires: Don't start after this moment, or so long from now.
            unique: A key; see `JobActor.using`.
            tags: Words to find the job by.
            job_id: Its id, instead of a new one.
            payload_version: The version of the payload, of an actor that isn't known here.

        Raises:
            UnknownActor: The actor isn't among those known here, and no category was given.
            InvalidPayload: The arguments don't fit, or the message is too large. Nothing was queued.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
            ValueError: The options contradict each other, or lie outside their limits; or no actors are known
                here, and no category was given.
        """
        options = send_options(priority, delay, at, expires, unique, tags, job_id)
        message = self._message(name, payload or {}, category, options, payload_version)
        clock = self.broker.clock
        sent: Message[Any] = self.broker.enqueue(message, delay=options.wait(clock))
        return sent

    def _message(
        self,
        name: str,
        payload: Mapping[str, Any],
        category: str | None,
        options: SendOptions,
        payload_version: int,
    ) -> Message[Any]:
        actor, clock = self._declared(name, category), self.broker.clock
        if actor is None:
            actor_name = name.replace("_", "-")
            queue = queue_for(category or "", options.priority or Priority.MEDIUM)
            extras = options.extras(actor_name, payload_version=payload_version, clock=clock)
        elif isinstance(actor, JobActor):
            actor_name = actor.actor_name
            queue = queue_for(actor.category, options.priority) if options.priority else actor.queue_name
            extras = options.extras(
                actor_name,
                payload_version=actor.payload_version,
                expires=actor.options.get("expires"),
                clock=clock,
            )
        else:  # a stock actor has one queue
            actor_name, queue = actor.actor_name, actor.queue_name
            extras = options.extras(actor_name, clock=clock)
        return Message(
            queue_name=queue,
            actor_name=actor_name,
            args=(),
            kwargs=dict(payload),
            options={"callboard": extras},
            message_id=options.job_id or envelope.new_job_id(),
            message_timestamp=int(clock() * 1000),
        )

    def _declared(self, name: str, category: str | None) -> Actor[Any, Any] | None:
        """The actor, where it is declared in this process; None where the job goes out unchecked."""
        try:
            return self.broker.find_actor(name)
        except UnknownActor:
            if category is not None:
                if not is_category(category):
                    raise ValueError(f"{category!r} can't be a category") from None
                return None
            if self.broker.actors:
                raise
            raise ValueError(
                f"no actors are declared here: say which category '{name}' is in, which is the name of its module"
            ) from None

    def close(self) -> None:
        """Let go of connections and files."""
        self.broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
