"""A message that a worker has claimed, and what is to become of it.

Middleware and workers don't ack, retry or dead-letter: they set `ClaimedMessage.disposition`, and the
broker settles the claim accordingly when the worker hands the message back (`Broker.settle`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.middleware import TimeLimitExceeded

from callboard.brokers.driver import Delivery, Intake
from callboard.context import Run
from callboard.envelope import AttemptError, Extras, Headers, Wire
from callboard.errors import text_of
from callboard.process import worker_name
from callboard.states import State, order


@dataclass(slots=True, frozen=True)
class Finish:
    """The job has ended, and its message goes: succeeded, cancelled, expired or discarded."""

    state: State = State.SUCCEEDED
    reason: str = ""


#: How the reason begins why a job waits whose worker died while it ran it.
CUT_SHORT = "its run was cut short"


@dataclass(slots=True, frozen=True)
class Later:
    """The job waits in the broker, then comes again. `failed_run` is given when an attempt was used."""

    state: State  # retrying, snoozed, parked
    due: float  # seconds since the epoch
    reason: str = ""
    failed_run: AttemptError | None = None
    slot: float | None = None  # the moment that a limit has reserved for it


@dataclass(slots=True, frozen=True)
class Die:
    """The job failed for good: it becomes a dead letter."""

    reason: str
    failed_run: AttemptError | None = None
    traceback: str = ""
    fingerprint: str = ""


@dataclass(slots=True, frozen=True)
class HookFailed:
    """A middleware hook failed: the job wasn't safely processed. It comes again, uncounted, with backoff."""

    hook: str
    error: BaseException


@dataclass(slots=True, frozen=True)
class GiveBack:
    """The worker is stopping: the message goes back as it came, uncounted."""


@dataclass(slots=True, frozen=True)
class Drop:
    """The claim is gone, or somebody else runs the job: nothing is told of it. What is left of the claim goes back."""


@dataclass(slots=True, frozen=True)
class Merge:
    """The job has gone further than this message says (see `callboard.brokers.copies`): the message goes, and
    nothing is told of it."""


Disposition = Finish | Later | Die | HookFailed | GiveBack | Drop | Merge

DONE = Finish()


class ClaimedMessage(MessageProxy):
    """A received message with its claim.

    Attributes:
        delivery: The claimed bytes, and the driver's hold on them.
        intake: Whose claim it is.
        headers: What has changed on its way.
        extras: What `options.callboard` of the body says.
        disposition: What is to become of it; None means succeeded, or dead if `failed` is set.
        attempt: The number of this run, from 1.
        started_at: When the run began, in seconds since the epoch; None before.
        run: What the job sees of itself; None before its body is about to run.
    """

    def __init__(
        self, wire: Wire, delivery: Delivery, intake: Intake, headers: Headers, extras: Extras
    ) -> None:
        # Its own fields, and no Message yet: to make one takes longer than to read the body, and few ask.
        self.queue_name = delivery.queue  # whatever the body says: it is the one it came from
        self.actor_name = wire.actor_name
        self.args = tuple(wire.args)
        self.kwargs = wire.kwargs
        self.options = wire.options
        self.message_id = wire.message_id
        self.message_timestamp = wire.message_timestamp
        self._exception: BaseException | None = None
        self.failed = False
        self.delivery = delivery
        self.intake = intake
        self.headers = headers
        self.extras = extras
        self.disposition: Disposition | None = None
        self.settled = False
        self.started_at: float | None = None
        self.run: Run | None = None

    @cached_property
    def _message(self) -> Message[Any]:  # type: ignore[override]  # Dramatiq sets it, here it is made when asked for
        return Message(
            queue_name=self.queue_name,
            actor_name=self.actor_name,
            args=self.args,
            kwargs=self.kwargs,
            options=self.options,
            message_id=self.message_id,
            message_timestamp=self.message_timestamp,
        )

    def __str__(self) -> str:
        # Dramatiq's worker logs what fails or is skipped, and its own text shows the arguments, secrets and all.
        return f"{self.actor_name} {self.message_id}"

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Message, name):
            raise AttributeError(name)
        return getattr(self._message, name)

    @property
    def attempt(self) -> int:
        """The number of this run, counting from 1."""
        return self.headers.attempt + 1

    @property
    def exception(self) -> BaseException | None:
        """How the run failed, while the message is being processed."""
        return self._exception

    def failed_run(self, error: BaseException, at: float) -> AttemptError:
        """How this run failed, in words."""
        text = text_of(error)
        if isinstance(error, TimeLimitExceeded) and not text and self.run is not None:
            text = f"it ran longer than its limit of {self.run.time_limit:g} s"
        return AttemptError(self.attempt, at, type(error).__name__, text, worker_name())

    def ready_at(self) -> float:
        """Since when the job could have been running, in seconds since the epoch."""
        headers = self.headers
        return headers.ready_at or headers.replayed_at or self.message_timestamp / 1000


def job_order(message: MessageProxy, state: State) -> int:
    """How new a state of a claimed message is; see `callboard.states.order`."""
    headers = message.headers if isinstance(message, ClaimedMessage) else Headers()
    return order(headers.hop, state)
