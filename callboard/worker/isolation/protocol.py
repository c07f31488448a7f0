"""What a worker and a runner tell each other: msgpack frames, each after its length.

Nothing is ever unpickled. The payload travels as the JSON that it is, and a failure as words: see `failure`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

_HEAD = 4
#: No frame is longer. A result that is larger is refused where it is made.
MAX_BYTES = 32 * 1024 * 1024
MAX_RESULT_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


class ConnectionSpoilt(Exception):
    """What came is no frame: the job wrote into its runner's connection."""


# -- to a runner -------------------------------------------------------------------------------------------


class Job(msgspec.Struct, tag="job"):
    """Run this. `started` is of the clock that all processes of a machine share, `time.monotonic`."""

    module: str
    name: str  # the actor's, in its module
    id: str
    actor: str
    queue: str
    attempt: int
    order: int
    tags: list[str]
    replayed: bool
    started: float
    time_limit: float | None
    wants_result: bool
    payload: bytes  # JSON: positional arguments, arguments by name


class Interrupt(msgspec.Struct, tag="interrupt"):
    """Raise this in the body: 'Cancelled', 'TimeLimitExceeded' or 'Shutdown'."""

    exception: str


class CancelledFlag(msgspec.Struct, tag="cancelled"):
    """From now on `current_job().cancelled()` is true."""


class Answer(msgspec.Struct, tag="answer"):
    """What became of a `Save` or `Load`. `error` is empty if it was done."""

    state: bytes | None = None
    error: str = ""


# -- from a runner -----------------------------------------------------------------------------------------


class Begun(msgspec.Struct, tag="begun"):
    """The body starts now. A runner that dies before it has said so has run nothing."""


class Progress(msgspec.Struct, tag="progress"):
    """How far the run is."""

    fraction: float | None
    note: str


class Save(msgspec.Struct, tag="save"):
    """Keep this checkpoint."""

    state: bytes


class Load(msgspec.Struct, tag="load"):
    """Give me the last checkpoint."""


class Done(msgspec.Struct, tag="done"):
    """It succeeded, with this result as JSON; None if nobody wants it."""

    result: bytes | None


class Failed(msgspec.Struct, tag="failed"):
    """It raised something."""

    types: list[str]  # its class and those above, as 'module:name'
    text: str
    traceback: str
    where: str  # as in `callboard.dead_letter.where_raised`
    retry_after: float | None = None
    wait: float | None = None  # a Snooze's, in seconds
    delay: float | None = None  # a dramatiq.Retry's, in milliseconds


ToRunner = Job | Interrupt | CancelledFlag | Answer
FromRunner = Begun | Progress | Save | Load | Done | Failed

_encode = msgspec.msgpack.Encoder().encode


def frame(message: ToRunner | FromRunner) -> bytes:
    """A message as it is sent."""
    body = _encode(message)
    return len(body).to_bytes(_HEAD, "big") + body


class Frames(Generic[T]):
    """Messages out of bytes as they come."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decode = decoder.decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that are complete.

        Raises:
            ConnectionSpoilt: If these bytes are none.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD:
            length = int.from_bytes(buffer[:_HEAD], "big")
            if length > MAX_BYTES:
                raise ConnectionSpoilt
            if len(buffer) < _HEAD + length:
                return
            body = bytes(buffer[_HEAD : _HEAD + length])
            del buffer[: _HEAD + length]
            try:
                yield self._decode(body)
            except msgspec.MsgspecError as error:
                raise ConnectionSpoilt from error


def frames_to_runner() -> Frames[ToRunner]:
    """For a runner."""
    return Frames(msgspec.msgpack.Decoder(ToRunner))


def frames_from_runner() -> Frames[FromRunner]:
    """For a worker."""
    return Frames(msgspec.msgpack.Decoder(FromRunner))
