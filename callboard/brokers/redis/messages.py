"""A message as Redis keeps it: whether it may have been started, the length of the headers, headers, body."""

from __future__ import annotations

import math

from callboard.brokers.driver import Delivery, Outgoing, StoredMessage

_FRESH = b"0"  # scripts change it to "1"
_HEAD = 5


def pack(message: Outgoing) -> bytes:
    return b"%b%b%b%b" % (_FRESH, len(message.headers).to_bytes(4), message.headers, message.body)


def due_of(message: Outgoing) -> int:
    """When it is due, in microseconds since the epoch; 0 for at once."""
    return 0 if message.due is None else math.ceil(message.due * 1e6)


def unpack_delivery(queue: str, token: str, value: bytes) -> Delivery:
    end = _HEAD + int.from_bytes(value[1:_HEAD])
    return Delivery(queue, value[end:], value[_HEAD:end], token, value[:1] != _FRESH)


def unpack_stored(queue: str, value: bytes) -> StoredMessage:
    end = _HEAD + int.from_bytes(value[1:_HEAD])
    return StoredMessage(queue, value[end:], value[_HEAD:end])
