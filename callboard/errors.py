"""Everything Callboard raises, under one root.

Two families: errors (what went wrong, which one, what to do next) and the two signals that an actor
raises to steer its own job, `Permanent` and `Snooze`. A docstring that ends in a format string is the
message; the others are given theirs where they are raised.
"""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


#: No job waits longer in the broker.
MAX_WAIT = timedelta(days=300)


class CallboardError(Exception):
    """The root: catch it to catch whatever Callboard itself raises."""


class CallboardWarning(UserWarning):
    """Something works, and not as well as it could; the message says what to do."""


class SettingsError(CallboardError):
    """A setting is missing, malformed, or contradicts another."""


class AppError(CallboardError):
    """An application can't be loaded; the message says why, and shows its own lines that led there."""


class UnknownQueue(CallboardError, LookupError):
    """There is no such queue, or a pattern matches none; the message tells which there are."""


class MissingExtra(CallboardError):
    """An optional library is needed and not installed; the message names the extra that brings it."""

    def __init__(self, extra: str, *, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the extra '{extra}': pip install 'callboard[{extra}]'")
        self.extra = extra


class ScheduleError(CallboardError, ValueError):
    """A cron expression is malformed or can never fire."""


class DeclarationError(CallboardError, TypeError):
    """An actor is declared in a way that can't work: its name, its options, its parameters."""


class UnknownActor(CallboardError, LookupError):
    """No actor has this name; the message suggests the nearest."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"there is no actor '{name}'; {hint}")
        self.name = name
        self.nearest = near[0] if near else None


class SendError(CallboardError):
    """A job was not accepted. `job_id` is the id it had, or would have had."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class InvalidPayload(SendError, ValueError):
    """The arguments don't fit the actor. Nothing was queued."""


class CheckpointTooLarge(CallboardError, ValueError):
    """A job's checkpoint is over the size limit. What it kept before is still kept."""

    def __init__(self, *, actor: str, size: int, limit: int) -> None:
        super().__init__(
            f"a checkpoint of '{actor}' has {size:,} bytes, over the limit of {limit:,}; "
            "put the data into storage and keep its key instead"
        )


class PayloadTooLarge(InvalidPayload):
    """The message is over the size limit. Nothing was queued."""

    def __init__(self, *, job_id: str, actor: str, size: int, limit: int) -> None:
        super().__init__(
            f"the payload of '{actor}' makes a message of {size:,} bytes, over the limit of {limit:,}; "
            "put the data into storage and send its key instead",
            job_id=job_id,
        )


class NotQueued(SendError):
    """The job is certainly not queued: sending it again is safe."""


class FateUnknown(SendError):
    """The broker may or may not have the job: it was handed over, and no confirmation came in time.

    Sending it again with the same id is safe if the actor is safe to run twice.
    """


class PartlySent(SendError):
    """Of several jobs sent at once, some were not accepted. `queued`, `not_queued`, `unknown` hold their ids."""

    def __init__(self, cause: str, *, queued: list[str], not_queued: list[str], unknown: list[str]) -> None:
        super().__init__(
            f"{len(queued)} jobs were queued, {len(not_queued)} were not, "
            f"the fate of {len(unknown)} is unknown: {cause}",
            job_id=(not_queued or unknown)[0],
        )
        self.queued = queued
        self.not_queued = not_queued
        self.unknown = unknown


class IsolatedJobDied(CallboardError):
    """The process in which an isolated job ran ended before the job did; the message says how."""


class MemoryExceeded(IsolatedJobDied):
    """An isolated job used more memory than its actor allows, and its process was killed."""


class Unreadable(CallboardError):
    """A received message can't be read or trusted; it belongs into quarantine. The text is the reason."""


class BrokerUnavailable(CallboardError, ConnectionError):
    """The broker can't be reached, or can't be opened; the message says which and why."""


class StoreUnavailable(CallboardError, ConnectionError):
    """The store can't be read or written; the message says which and why."""


class InvalidQuery(CallboardError, ValueError):
    """A search asks for something that no search can answer; the message says what."""


class JobNotFound(CallboardError, LookupError):
    """No job has this id, as far as the store and the broker know."""


class NotPossible(CallboardError):
    """What was asked can't be done to this job or queue as it is now; the message says why."""


def printable(text: str) -> str:
    """A text that can be encoded as UTF-8: lone surrogates, as in the names of odd files, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(error: BaseException, *, limit: int = 4_000) -> str:
    """What an exception says, whatever it is: never raises, can be encoded, and is at most `limit` long."""
    try:
        text = str(error)
    except BaseException as broken:  # noqa: BLE001  an exception's own code may raise anything
        return f"(its text can't be had: {type(broken).__name__} in its __str__)"
    return printable(text[:limit])


class Permanent(CallboardError):
    """Raise it in an actor to stop: the job is dead at once, whatever attempts were left."""


class Snooze(CallboardError):
    """Raise it in an actor to come back later without using an attempt."""

    def __init__(self, wait: timedelta, reason: str = "") -> None:
        if not timedelta(0) < wait <= MAX_WAIT:
            raise ValueError(f"a snooze lasts up to {MAX_WAIT.days} days, and can't last {wait}")
        super().__init__(reason or f"snoozed for {wait}")
        self.wait = wait
