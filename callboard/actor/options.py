"""How a job is to be sent, apart from what it carries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack

from callboard import envelope
from callboard.errors import MAX_WAIT, DeclarationError, printable
from callboard.queues import Priority

UniqueUntil = Literal["started", "ended"]


class GivenOptions(TypedDict, total=False):
    """The options that `JobActor.using` and `Client.send` take; see `JobActor.using`."""

    priority: Priority | None
    delay: timedelta | None
    at: datetime | None
    expires: timedelta | datetime | None
    unique: str | None
    tags: Iterable[str]
    job_id: str | None
    unique_for: timedelta | None
    unique_until: UniqueUntil


@dataclass(frozen=True, slots=True)
class SendOptions:
    """Options as `send_options` has checked them."""

    priority: Priority | None = None
    delay: timedelta | None = None
    at: datetime | None = None
    expires: timedelta | datetime | None = None
    unique: str | None = None
    tags: tuple[str, ...] = ()
    job_id: str | None = None
    unique_for: timedelta | None = None
    unique_until: UniqueUntil = "ended"

    def wait(self, clock: Callable[[], float] = time.time) -> timedelta | None:
        """How long from now until it may start."""
        return self.at - datetime.fromtimestamp(clock(), UTC) if self.at is not None else self.delay

    def extras(
        self,
        actor_name: str,
        *,
        payload_version: int = 1,
        expires: timedelta | None = None,
        clock: Callable[[], float] = time.time,
    ) -> dict[str, Any]:
        """What a message's `options.callboard` says; `expires` is the actor's own."""
        extras: dict[str, Any] = {"v": envelope.VERSION}
        if payload_version != 1:
            extras["payload_version"] = payload_version
        expires_at = self.expires if self.expires is not None else expires
        if expires_at is not None:
            extras["expires"] = (
                expires_at.timestamp()
                if isinstance(expires_at, datetime)
                else clock() + expires_at.total_seconds()
            )
        if self.tags:
            extras["tags"] = list(self.tags)
        if self.unique is not None:
            extras["unique"] = f"{actor_name}:{self.unique}"
        if self.unique_for is not None:
            extras["unique_for"] = self.unique_for.total_seconds()
        if self.unique_until == "started":
            extras["unique_until"] = "started"
        return extras


PLAIN = SendOptions()
#: Those that say when or how long, and of which types they are. A number wouldn't say of what.
_TIMES: dict[str, tuple[type, ...]] = {
    "delay": (timedelta,),
    "at": (datetime,),
    "expires": (timedelta, datetime),
    "unique_for": (timedelta,),
}


def send_options(base: SendOptions = PLAIN, /, **given: Unpack[GivenOptions]) -> SendOptions:
    """Checked options: those that are given, and for the rest those of `base`.

    Raises:
        TypeError: If one is unknown, or of the wrong type.
        ValueError: If they contradict each other, or lie outside their limits.
    """
    changes: dict[str, Any] = {**given}
    _check_types(changes)
    if "tags" in given:
        changes["tags"] = _checked_tags(given["tags"])
    if (priority := given.get("priority")) is not None:
        changes["priority"] = priority_of(priority)
    options = replace(base, **changes)
    _check_times(options)
    _check_uniqueness(options)
    return options


def priority_of(given: Any) -> Priority:
    """A priority as it was given, perhaps by its name.

    Raises:
        DeclarationError: If there is none of that name.
    """
    if isinstance(given, str):
        given = Priority.__members__.get(given.upper(), given)
    try:
        return Priority(given)
    except ValueError:
        names = ", ".join(f"Priority.{priority.name}" for priority in Priority)
        raise DeclarationError(f"priority={given!r} is none; there are {names}") from None


def _checked_tags(given: Iterable[str]) -> tuple[str, ...]:
    tags = (given,) if isinstance(given, str) else tuple(given)
    if any(not isinstance(tag, str) or not 0 < len(tag) <= 64 for tag in tags):
        raise ValueError(f"a tag is a text of 1 to 64 characters, and not so in {tags!r}")
    return tags


def _check_types(given: dict[str, Any]) -> None:
    known = GivenOptions.__annotations__
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(known)}")
        types = _TIMES.get(name)
        if types is None or value is None or isinstance(value, types):
            continue
        wanted = " or ".join(f"a {cls.__name__}" for cls in types)
        seconds = isinstance(value, int | float) and timedelta in types
        example = f"; for seconds: {name}=timedelta(seconds={value})" if seconds else ""
        raise TypeError(f"{name}={value!r} is not {wanted}{example}")


def _check_times(options: SendOptions) -> None:
    if options.delay is not None and options.at is not None:
        raise ValueError("a job starts after a delay or at a moment: give one of delay and at")
    for name, moment in (("at", options.at), ("expires", options.expires)):
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise ValueError(f"{name}={moment} has no time zone; use an aware datetime")


def _check_uniqueness(options: SendOptions) -> None:
    unique, unique_for, unique_until = options.unique, options.unique_for, options.unique_until
    if unique is not None and not (isinstance(unique, str) and 0 < len(printable(unique)) <= 256):
        raise ValueError(f"a unique key is a text of 1 to 256 characters, and not {unique!r}")
    if unique_until not in ("started", "ended"):
        raise ValueError(f"a job is unique until it has 'started' or 'ended', not {unique_until!r}")
    if unique_for is None and unique_until == "ended":
        return
    if unique is None:
        raise ValueError("unique_for and unique_until say how long a unique= key lasts, and there is none")
    if unique_for is not None and unique_until == "started":
        raise ValueError("a key lasts for a time, unique_for, or until the job has started, not both")
    if unique_for is not None and not timedelta(0) < unique_for <= MAX_WAIT:
        raise ValueError(f"a key lasts up to {MAX_WAIT.days} days, and can't last {unique_for}")
