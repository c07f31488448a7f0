"""Declaring a job, and sending it.

    @actor(priority=Priority.HIGH, retries=5)
    def send_invoice(invoice_id: int, to: str) -> None: ...

    send_invoice.send(invoice_id=42, to="ada@example.org")
    send_invoice.using(delay=timedelta(hours=1)).send(42, "ada@example.org")

`actor` comes from the application's `broker.py`, and there is no other way in: what it declares is bound
to that broker and never to Dramatiq's global one. The typed parameters are the payload. Where versions,
validators or secrets are wanted, a pydantic model is named: `@actor(SendEmail)`.

Who sends knows a `Recipient`: an actor has its own, and `callboard.client` makes one of a name. So both send by
the same rules, and with the same options.
"""

from __future__ import annotations

from callboard.actor.decorator import ActorDecorator
from callboard.actor.job_actor import JobActor, Sending
from callboard.actor.model_actor import ModelActor, ModelSending
from callboard.actor.options import GivenOptions, SendOptions, UniqueUntil, send_options
from callboard.actor.recipient import Recipient

__all__ = [
    "ActorDecorator",
    "GivenOptions",
    "JobActor",
    "ModelActor",
    "ModelSending",
    "Recipient",
    "SendOptions",
    "Sending",
    "UniqueUntil",
    "send_options",
]
