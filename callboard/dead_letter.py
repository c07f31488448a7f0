"""A dead letter: the original message, and the whole story of how it died.

The queue `<category>.dead` is the truth, the store its index. The letter's body wraps the original bytes,
so that a replay sends exactly what was sent.
"""

from __future__ import annotations

import base64
import hashlib
import re
import traceback as tracebacks

import msgspec

from callboard import queues
from callboard.envelope import AttemptError, Count, Headers, Moment, is_job_id
from callboard.errors import Unreadable, printable

MAX_TRACEBACK = 32_000

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


class DeadLetter(msgspec.Struct, omit_defaults=True):
    """What a letter's body holds. Times are seconds since the epoch."""

    job_id: str
    actor: str
    queue: str  # where a replay goes
    died_at: Moment
    death: Count  # 1 for the first time; a copy with the same id and number is the same letter
    reason: str
    fingerprint: str
    attempts: list[AttemptError]
    headers: Headers  # as they were at the last run
    message: str  # the original body
    encoding: str = "utf-8"  # 'base64' if the body was no text
    traceback: str = ""
    enqueued_at: Moment = 0.0
    tags: list[str] = []
    v: int = 1

    @property
    def original(self) -> bytes:
        """The bytes that were sent."""
        return (
            base64.b64decode(self.message, validate=True)
            if self.encoding == "base64"
            else self.message.encode()
        )

    @property
    def error(self) -> str:
        """The last error in a line."""
        if not self.attempts:
            return self.reason
        last = self.attempts[-1]
        return f"{last.type}: {last.message}"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DeadLetter).decode


def wrap(body: bytes) -> tuple[str, str]:
    """An original body as a text, and its encoding."""
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"


def encode(letter: DeadLetter) -> bytes:
    """The letter as a message's body."""
    return _encode(letter)


def decode(body: bytes, *, lies_in: str = "") -> DeadLetter:
    """The letter in a body.

    Args:
        body: What a queue of dead letters holds.
        lies_in: The queue that holds it, where that is known: a letter is replayed within its category.

    Raises:
        Unreadable: If it is none, or none that can be replayed.
    """
    try:
        letter = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"this is no dead letter: {error}") from error
    if (fault := _fault(letter, lies_in)) is not None:
        raise Unreadable(f"this is no dead letter that can be replayed: {fault}")
    return letter


def _fault(letter: DeadLetter, lies_in: str) -> str | None:
    """What is wrong with a letter that has all its fields: anybody who can write to the broker can write one."""
    if not is_job_id(letter.job_id):
        return f"{letter.job_id[:140]!r} is no job id"
    if not letter.queue or letter.queue == queues.QUARANTINE or letter.queue.endswith(".dead"):
        return f"{letter.queue[:140]!r} is no queue of jobs"
    if lies_in and queues.dead_queue(queues.category_of(letter.queue)) != lies_in:
        return f"it belongs to the queue {letter.queue[:140]!r}, and lies in {lies_in!r}"
    if letter.encoding not in ("utf-8", "base64"):
        return f"{letter.encoding[:140]!r} is no encoding of a message"
    try:
        _ = letter.original
    except ValueError as error:
        return f"its message can't be read: {error}"
    return None


def fingerprint(actor: str, error_type: str, message: str, where: str = "") -> str:
    """What letters with the same cause have in common: 12 hexadecimal digits over the actor, the error's
    type and where it was raised, or its text without numbers when that isn't known."""
    cause = where or _NUMBERS.sub("#", message)[:200]
    return hashlib.sha256(f"{actor}\n{error_type}\n{cause}".encode()).hexdigest()[:12]


def where_raised(error: BaseException) -> str:
    """The innermost frame of a traceback as 'module:function'. Line numbers would change with each edit.

    What was raised in another process says it itself, as `told_where`.
    """
    told: object = getattr(error, "told_where", None)
    if isinstance(told, str):
        return told
    frames = [frame for frame, _ in tracebacks.walk_tb(error.__traceback__)]
    return f"{frames[-1].f_globals.get('__name__', '?')}:{frames[-1].f_code.co_name}" if frames else ""


def format_traceback(error: BaseException) -> str:
    """The traceback as text. A long one keeps its head and its tail, where causes stand.

    What was raised in another process brings it, as `told_traceback`.
    """
    told: object = getattr(error, "told_traceback", None)
    text = told if isinstance(told, str) else printable("".join(tracebacks.format_exception(error)))
    if len(text) <= MAX_TRACEBACK:
        return text
    half = MAX_TRACEBACK // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters cut ...\n{text[-half:]}"
