"""The message, version 1: an immutable body, and small headers that change on its way.

The body is Dramatiq's own JSON. What Callboard adds stands in `options.callboard`. It is written once,
at the send, signed if keys are set, and never rewritten: a retry, a park or a replay sends the original
bytes on. The headers travel beside it (an AMQP header, a column): attempts, the last errors, why it waits.

    {"queue_name": "email.high", "actor_name": "send-email", "args": [],
     "kwargs": {"to": ["ada@example.org"]}, "options": {"callboard": {"v": 1, "tags": ["welcome"]}},
     "message_id": "0198...", "message_timestamp": 1795305600000}
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from dramatiq import Message

from callboard.errors import SettingsError, Unreadable, printable

VERSION = 1

#: Headers stay below this: an AMQP header frame over 131,064 bytes closes the connection.
MAX_HEADER_BYTES = 8_000
MAX_ERRORS = 5

_JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


# What no honest message goes beyond; arithmetic on more would overflow somewhere on the way.
Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=10**11)]  # seconds since the epoch
Seconds = Annotated[float, msgspec.Meta(ge=0, le=10**8)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=10**14)]


class Extras(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What `options.callboard` holds. Fields of a later version are unknown here, and the job is parked."""

    v: int = VERSION
    payload_version: Count = 1
    expires: Moment | None = None  # the job doesn't start after it
    trace: str | None = None  # a W3C traceparent
    tags: list[str] = []
    unique: str | None = None  # the key that the job holds until it ends
    unique_for: Seconds | None = None  # or for so long from the send, whatever becomes of it
    unique_until: Literal["started"] | None = None  # or until it starts
    tick: Moment | None = None  # the moment of the schedule that made it


class AttemptError(msgspec.Struct, omit_defaults=True, gc=False):
    """How one run failed, in short. The traceback is in the record, and the last one in the dead letter."""

    attempt: Count
    at: Moment
    type: str
    message: str
    worker: str = ""


class Headers(msgspec.Struct, omit_defaults=True, gc=False):
    """What changes on a job's way. All at their defaults when it is sent."""

    hop: Count = 0  # how often Callboard has published it again; see `callboard.states.order`
    attempt: Count = 0  # counted runs that have ended
    state: str = ""  # what its stay in the queue is: '' (queued), scheduled, retrying, snoozed, parked
    ready_at: Moment | None = None  # when this stay's wait ends
    errors: list[AttemptError] = []
    parked_since: Moment | None = None
    reason: str = ""  # why it waits
    hook_failures: Count = 0
    crashes: Count = 0  # runs whose worker died: from the first on, the job runs alone
    snoozes: Count = 0
    slot: Moment | None = None  # when a limit lets it start: it was given this time, and waits for it
    deaths: Count = 0
    replayed_at: Moment | None = None
    signature: str = ""


class Wire(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields of a body, as they are in a Dramatiq message."""

    queue_name: str
    actor_name: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str
    message_timestamp: Annotated[int, msgspec.Meta(ge=0, le=10**14)]


_encode = msgspec.json.Encoder().encode
_decode_body = msgspec.json.Decoder(Wire).decode
_decode_headers = msgspec.json.Decoder(Headers).decode
_encode_headers = msgspec.json.Encoder().encode
_NO_HEADERS = Headers()


def new_job_id() -> str:
    """A UUID version 7 (RFC 9562): 48 bits of milliseconds, then random ones, so that ids sort by time."""
    moment = f"{time.time_ns() // 1_000_000:012x}"
    tail = os.urandom(10).hex()
    return f"{moment[:8]}-{moment[8:]}-7{tail[:3]}-{_VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}"


def new_job_ids(count: int) -> list[str]:
    """Some new ids in rising sequence: what is written in the order of its key is written faster."""
    moment = f"{time.time_ns() // 1_000_000:012x}"
    head = f"{moment[:8]}-{moment[8:]}-7"
    random = os.urandom(10 * count).hex()
    tails = [random[start : start + 19] for start in range(0, 20 * count, 20)]
    return sorted(f"{head}{tail[:3]}-{_VARIANT[tail[3]]}{tail[4:7]}-{tail[7:]}" for tail in tails)


#: The two highest bits of that digit say that it is a UUID of the RFC; the others are random.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def is_job_id(text: str) -> bool:
    """Whether a text can be a job's id: 1 to 128 of letters, digits, `.`, `_`, `:` and `-`."""
    return _JOB_ID.fullmatch(text) is not None


def encode(message: Message[Any]) -> bytes:
    """A message's body.

    Raises:
        TypeError: If something in it is no JSON.
    """
    return _encode(
        {
            "queue_name": message.queue_name,
            "actor_name": message.actor_name,
            "args": message.args,
            "kwargs": message.kwargs,
            "options": message.options,
            "message_id": message.message_id,
            "message_timestamp": message.message_timestamp,
        }
    )


def decode(body: bytes, *, max_bytes: int) -> Message[Any]:
    """The message in a received body, strictly.

    Raises:
        Unreadable: With the reason.
    """
    return message_of(read(body, max_bytes=max_bytes))


def message_of(wire: Wire) -> Message[Any]:
    """A body's fields as a message."""
    return new_message(
        wire.queue_name,
        wire.actor_name,
        tuple(wire.args),
        wire.kwargs,
        wire.options,
        wire.message_id,
        wire.message_timestamp,
    )


def new_message(
    queue_name: str,
    actor_name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    message_id: str,
    message_timestamp: int,
) -> Message[Any]:
    """A message, in a third of the time: a frozen dataclass sets each of its fields by a call."""
    message: Message[Any] = _new(Message)
    fields = message.__dict__
    fields["queue_name"] = queue_name
    fields["actor_name"] = actor_name
    fields["args"] = args
    fields["kwargs"] = kwargs
    fields["options"] = options
    fields["message_id"] = message_id
    fields["message_timestamp"] = message_timestamp
    return message


_new = object.__new__


def read(body: bytes, *, max_bytes: int) -> Wire:
    """The fields of a received body, strictly: a third of the time of `decode`.

    Raises:
        Unreadable: With the reason.
    """
    if len(body) > max_bytes:
        raise Unreadable(f"the body has {len(body):,} bytes, over the limit of {max_bytes:,}")
    try:
        wire = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"the body is no message: {error}") from error
    except RecursionError as error:
        raise Unreadable("the body is nested too deeply") from error
    if _JOB_ID.fullmatch(wire.message_id) is None:
        raise Unreadable(f"{wire.message_id[:140]!r} is no job id")
    return wire


def encode_headers(headers: Headers) -> bytes:
    """The headers as bytes, empty when all are at their defaults; long texts and old errors are cut away."""
    if headers == _NO_HEADERS:
        return b""
    del headers.errors[:-MAX_ERRORS]
    for error in headers.errors:
        error.message = printable(error.message[:400])
        error.type = printable(error.type[:200])
    headers.reason = printable(headers.reason[:400])
    encoded = _encode_headers(headers)
    while len(encoded) > MAX_HEADER_BYTES and headers.errors:
        del headers.errors[0]
        encoded = _encode_headers(headers)
    return encoded


def decode_headers(data: bytes) -> Headers:
    """The headers in bytes.

    Raises:
        Unreadable: If they are none.
    """
    if not data:
        return Headers()
    try:
        return _decode_headers(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"the headers can't be read: {error}") from error


_NO_EXTRAS = Extras()
_PLAIN = {"v": VERSION}  # what most messages carry


def extras_of(options: Mapping[str, Any]) -> Extras:
    """What `options.callboard` says. A stock message has none.

    Raises:
        Unreadable: If a field has a wrong type.
        UnknownExtras: If it is of a version, or has a field, that is not known here.
    """
    found = options.get("callboard")
    if found is None or found == _PLAIN:
        return _NO_EXTRAS
    if isinstance(found, dict):
        if unknown := set(found) - _EXTRAS_FIELDS:
            raise UnknownExtras(
                f"it carries what this version doesn't know: {', '.join(sorted(unknown))[:200]}"
            )
        version = found.get("v", VERSION)
        if type(version) is int and version > VERSION:
            raise UnknownExtras(f"it is of envelope version {version}, and this worker knows {VERSION}")
    try:
        return msgspec.convert(found, Extras)
    except msgspec.ValidationError as error:
        raise Unreadable(f"options.callboard is wrong: {error}") from error


class _Options(msgspec.Struct):
    """The options whose types matter before anything else looks at them. They are Dramatiq's own."""

    eta: Milliseconds | None = None
    pipe_target: Wire | None = None
    pipe_ignore: bool | None = None
    on_success: str | None = None
    on_failure: str | None = None
    on_retry_exhausted: str | None = None
    max_retries: Count | None = None
    min_backoff: Milliseconds | None = None
    max_backoff: Milliseconds | None = None
    max_age: Milliseconds | None = None
    time_limit: Milliseconds | None = None
    store_results: bool | None = None
    result_ttl: Milliseconds | None = None
    retries: Count = 0
    throws: None = None  # a class, and no class is JSON
    retry_when: None = None
    scheduled_at: str | None = None
    group_completion_uuid: str | None = None
    group_completion_callbacks: list[Wire] | None = None


#: Options that a message may have although no middleware declares them.
KNOWN_OPTIONS = frozenset(_Options.__struct_fields__) | {
    "callboard",
    "delay",
    "traceback",
    "requeue_timestamp",
}


def check_options(options: Mapping[str, Any], known: frozenset[str]) -> None:
    """Check Dramatiq's options of a received message.

    Raises:
        Unreadable: If one has a wrong type.
        UnknownExtras: If one isn't known here.
    """
    try:
        msgspec.convert(options, _Options)
    except msgspec.ValidationError as error:
        raise Unreadable(f"an option is wrong: {error}") from error
    if unknown := options.keys() - known:
        raise UnknownExtras(f"it has options that aren't known here: {', '.join(sorted(unknown))[:200]}")


class UnknownExtras(Unreadable):
    """The message is of a later version: a newer worker may know it, so it is parked, not quarantined."""


_EXTRAS_FIELDS = frozenset(Extras.__struct_fields__)


class Signer:
    """Signs bodies with HMAC-SHA256 over the queue and the body; the body holds the expiry.

    Keys are given newest first: the first one signs, all of them verify, so that keys can be rotated.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("a signer needs at least one key")
        self._keys = dict(keys)
        self._newest = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str) -> Signer:
        """From 'id:secret,id:secret', newest first.

        Raises:
            SettingsError: If it isn't of that form, or a secret has under 16 characters.
        """
        keys: dict[str, bytes] = {}
        for part in text.split(","):
            key_id, colon, secret = part.strip().partition(":")
            if not colon or not is_job_id(key_id) or len(secret) < 16:
                raise SettingsError(
                    "CALLBOARD_SIGNING_KEYS must read 'id:secret,id:secret', newest first, "
                    "each secret of at least 16 characters"
                )
            keys[key_id] = secret.encode()
        return cls(keys)

    def sign(self, queue: str, body: bytes) -> str:
        """The signature of a body for a queue: 'key id:hex digest'."""
        return f"{self._newest}:{self._digest(self._keys[self._newest], queue, body)}"

    def verify(self, queue: str, body: bytes, signature: str) -> None:
        """Check a signature.

        Raises:
            Unreadable: If it is missing, of an unknown key, or wrong.
        """
        if not signature:
            raise Unreadable("it isn't signed, and this worker asks for signatures")
        key_id, _, digest = signature.rpartition(":")
        secret = self._keys.get(key_id)
        if secret is None:
            raise Unreadable(f"it is signed with the unknown key {key_id[:60]!r}")
        if not hmac.compare_digest(digest.encode(), self._digest(secret, queue, body).encode()):
            raise Unreadable("its signature is wrong: the body or its queue was changed")

    @staticmethod
    def _digest(secret: bytes, queue: str, body: bytes) -> str:
        return hmac.new(secret, b"callboard:1\0" + queue.encode() + b"\0" + body, "sha256").hexdigest()
