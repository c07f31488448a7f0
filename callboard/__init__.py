"""Callboard: background jobs that are never lost and never hidden.

What an application needs to declare and send jobs. `broker.py` wires the rest.
"""

from callboard.actor import ActorDecorator, JobActor, ModelActor
from callboard.context import Cancelled, current_job
from callboard.cron import cron
from callboard.errors import (
    CallboardError,
    FateUnknown,
    InvalidPayload,
    NotQueued,
    PartlySent,
    PayloadTooLarge,
    Permanent,
    SendError,
    Snooze,
)
from callboard.queues import Priority
from callboard.retry import RetryPolicy
from callboard.states import State

__version__ = "0.1.0"

__all__ = [
    "ActorDecorator",
    "CallboardError",
    "Cancelled",
    "FateUnknown",
    "InvalidPayload",
    "JobActor",
    "ModelActor",
    "NotQueued",
    "PartlySent",
    "PayloadTooLarge",
    "Permanent",
    "Priority",
    "RetryPolicy",
    "SendError",
    "Snooze",
    "State",
    "cron",
    "current_job",
]
