"""AMQP 0-9-1 frames of a published message, encoded at once.

pika encodes each of a message's three frames by itself and sends each with a system call of its own. Here a
message becomes one piece of bytes, and a batch of messages one write.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from callboard.brokers.driver import Outgoing

#: The AMQP header that carries `Outgoing.headers`.
HEADERS = "callboard"
#: The AMQP header that says since when the message waits: put or due, in microseconds since the epoch.
SINCE = "since_us"

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_BASIC, _PUBLISH, _MANDATORY = 60, 40, 1
# content type, headers, delivery mode, message id, timestamp, application id: in this order in the frame
_FLAGS = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 3

_frame = struct.Struct(">BHL")
_publish = struct.Struct(">HHH")
_content = struct.Struct(">HHQH")
_long = struct.Struct(">L")
_quad = struct.Struct(">Q")


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"'{text[:40]}...' is longer than the 255 bytes that AMQP allows")
    return bytes((len(data),)) + data


_TYPE = _short("application/json")
_PERSISTENT = b"\x02"
_APPLICATION = _short("callboard")
_SINCE_FIELD = _short(SINCE) + b"l"
_HEADERS_FIELD = _short(HEADERS) + b"S"


def publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """The frame that says where a message goes. Mandatory: what fits no queue is returned."""
    payload = (
        _publish.pack(_BASIC, _PUBLISH, 0) + _short(exchange) + _short(routing_key) + bytes((_MANDATORY,))
    )
    return _frame.pack(_METHOD, channel, len(payload)) + payload + _END


def publish_content(channel: int, message: Outgoing, since: float, frame_max: int) -> bytes:
    """The frames that carry a message's properties and body.

    Raises:
        ValueError: It doesn't fit into AMQP.
    """
    table = _SINCE_FIELD + _quad.pack(int(since * 1e6))
    if message.headers:
        table += _HEADERS_FIELD + _long.pack(len(message.headers)) + message.headers
    body = message.body
    payload = b"".join(
        (
            _content.pack(_BASIC, 0, len(body), _FLAGS),
            _TYPE,
            _long.pack(len(table)),
            table,
            _PERSISTENT,
            _short(message.job_id),
            _quad.pack(int(since)),
            _APPLICATION,
        )
    )
    if len(payload) + 8 > frame_max:
        # RabbitMQ would close the connection, and with it everybody's publishing.
        raise ValueError(f"the headers of job {message.job_id} take more than a frame of {frame_max} bytes")
    header = _frame.pack(_HEADER, channel, len(payload)) + payload + _END
    if not body:
        return header
    if len(body) + 8 <= frame_max:
        return b"".join((header, _frame.pack(_BODY, channel, len(body)), body, _END))
    return header + b"".join(_split(channel, body, frame_max - 8))


def _split(channel: int, body: bytes, size: int) -> list[bytes]:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return [_frame.pack(_BODY, channel, len(piece)) + piece + _END for piece in pieces]


def headers_of(table: Mapping[str, object] | None) -> bytes:
    """`Delivery.headers`, out of the headers of a received message."""
    value = (table or {}).get(HEADERS, b"")
    # pika gives a string where the bytes can be read as one.
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""


def since_of(table: Mapping[str, object] | None) -> int:
    """Since when a received message waits, in microseconds since the epoch; 0 if it doesn't say."""
    value = (table or {}).get(SINCE, 0)
    return value if isinstance(value, int) else 0
