"""Callboard: background jobs that are never lost and never hidden.

What an application needs to declare and send jobs. `broker.py` wires the rest.

The names are imported when they are first used: pytest loads `callboard.testing`, and with it this package,
also for people who test something else.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.actor import ActorDecorator, JobActor, ModelActor
    from callboard.context import Cancelled, LeaseLost, current_job
    from callboard.cron import cron
    from callboard.errors import (
        CallboardError,
        CallboardWarning,
        FateUnknown,
        InvalidPayload,
        NotQueued,
        PartlySent,
        PayloadTooLarge,
        Permanent,
        SendError,
        Snooze,
    )
    from callboard.isolation import Isolation
    from callboard.limits import ConcurrencyLimit, RateLimit
    from callboard.queues import Priority
    from callboard.retry import RetryPolicy
    from callboard.states import State

__version__ = "0.1.0"

__all__ = [
    "ActorDecorator",
    "CallboardError",
    "CallboardWarning",
    "Cancelled",
    "ConcurrencyLimit",
    "FateUnknown",
    "InvalidPayload",
    "Isolation",
    "JobActor",
    "LeaseLost",
    "ModelActor",
    "NotQueued",
    "PartlySent",
    "PayloadTooLarge",
    "Permanent",
    "Priority",
    "RateLimit",
    "RetryPolicy",
    "SendError",
    "Snooze",
    "State",
    "cron",
    "current_job",
]

_HOMES = {
    "actor": ("ActorDecorator", "JobActor", "ModelActor"),
    "context": ("Cancelled", "LeaseLost", "current_job"),
    "cron": ("cron",),
    "errors": (
        "CallboardError",
        "CallboardWarning",
        "FateUnknown",
        "InvalidPayload",
        "NotQueued",
        "PartlySent",
        "PayloadTooLarge",
        "Permanent",
        "SendError",
        "Snooze",
    ),
    "isolation": ("Isolation",),
    "limits": ("ConcurrencyLimit", "RateLimit"),
    "queues": ("Priority",),
    "retry": ("RetryPolicy",),
    "states": ("State",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'callboard' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"callboard.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `callboard.cron` the function: whoever imports the module of that name would bind it here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
