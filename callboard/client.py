"""Sending a job by its actor's name, importing no actor.

    with Client.open("amqp://user:password@queue.example.org/app") as client:
        client.send("send-email", {"to": ["ada@example.org"]}, category="email")

For producers elsewhere: a web application, a script, another service. The rules of sending are the broker's,
and hold here too. Only the payload is first checked by the worker, unless the actor is declared in this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

from dramatiq import Actor, Message

from callboard.actor import GivenOptions, JobActor, Recipient, send_options
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.brokers.sent_records import SentRecords
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
            store_url: As CALLBOARD_STORE_URL. Unique jobs need it, and records of jobs that no worker has had yet.
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
                middleware=[SentRecords()],
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
        payload_version: int = 1,
        **options: Unpack[GivenOptions],
    ) -> Message[Any]:
        """Queue a job. When this returns, the job is safe; its id is the message's `message_id`.

        If the job is unique and another one has its key, nothing is queued, and the message has the id of that one,
        also as `options["callboard"]["duplicate_of"]`.

        Args:
            name: The actor's name, `send-email` or `send_email`.
            payload: Its arguments, as JSON values.
            category: The module that the actor is declared in. Needed where that isn't known here.
            payload_version: The version of the payload, of an actor that isn't known here.
            **options: As `JobActor.using` takes them: `priority` (of medium, where the actor isn't known here),
                `delay`, `at`, `expires`, `unique`, `unique_for`, `unique_until`, `tags`, `job_id`.

        Raises:
            UnknownActor: The actor isn't among those known here, and no category was given.
            InvalidPayload: The arguments don't fit, or the message is too large. Nothing was queued.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
            ValueError: The options contradict each other, or lie outside their limits; or no actors are known
                here, and no category was given.
        """
        recipient = self._recipient(name, category, payload_version)
        return recipient.send(send_options(**options), (), dict(payload or {}))

    async def send_async(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        category: str | None = None,
        payload_version: int = 1,
        **options: Unpack[GivenOptions],
    ) -> Message[Any]:
        """`send` without blocking the event loop.

        If the awaiting task is cancelled, the job may be queued or not.
        """
        recipient = self._recipient(name, category, payload_version)
        return await recipient.send_async(send_options(**options), (), dict(payload or {}))

    def send_many(
        self,
        name: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        category: str | None = None,
        payload_version: int = 1,
        **options: Unpack[GivenOptions],
    ) -> list[Message[Any]]:
        """Queue many jobs in one go; all are safe when this returns.

        Args:
            name: The actor's name.
            payloads: The arguments of each job.
            category: As for `send`.
            payload_version: As for `send`.
            **options: As for `send`; they are those of each job.

        Raises:
            PartlySent: Some were not queued; the error has their ids.
            SendError: And else as `send` does: none was queued.
            ValueError: As for `send`.
        """
        recipient = self._recipient(name, category, payload_version)
        return recipient.send_many(send_options(**options), payloads)

    async def send_many_async(
        self,
        name: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        category: str | None = None,
        payload_version: int = 1,
        **options: Unpack[GivenOptions],
    ) -> list[Message[Any]]:
        """`send_many` without blocking the event loop."""
        recipient = self._recipient(name, category, payload_version)
        return await recipient.send_many_async(send_options(**options), payloads)

    def _recipient(self, name: str, category: str | None, payload_version: int) -> Recipient:
        actor = self._declared(name, category)
        if isinstance(actor, JobActor):
            return actor.recipient
        if actor is not None:  # a stock actor has one queue
            return Recipient(self.broker, actor.actor_name, actor.queue_name)
        assert category is not None
        queue = queue_for(category, Priority.MEDIUM)
        return Recipient(self.broker, name.replace("_", "-"), queue, category, payload_version)

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
