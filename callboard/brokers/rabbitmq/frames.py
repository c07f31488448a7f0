"""AMQP 0-9-1 frames of messages and acks, encoded and decoded at once.

pika takes each of a message's three frames by itself: to send it costs three system calls, to receive it 18
microseconds. Here a message is one piece of bytes, and a batch of messages one write. What is rare is left to
pika, and so is whatever looks in any way unusual.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from pika.spec import BasicProperties

from callboard.brokers.driver import Outgoing

#: The AMQP header that carries `Outgoing.headers`.
HEADERS: Final = "callboard"
#: The AMQP header that says that it was written before, and it isn't known whether it got there.
AGAIN: Final = "again"
#: RabbitMQ's own: how often it was delivered before, from its second delivery on.
DELIVERIES: Final = "x-delivery-count"
#: The AMQP header that says since when the message waits: put or due, in microseconds since the epoch.
SINCE: Final = "since_us"

METHOD, HEADER, BODY = 1, 2, 3
OVERHEAD: Final = 8  # bytes of a frame beside its payload
DELIVER, ACK, NACK = 60 << 16 | 60, 60 << 16 | 80, 60 << 16 | 120
_PUBLISH = 60 << 16 | 40
_BASIC, _END, _MANDATORY, _REQUEUE = 60, b"\xce", b"\x01", 2
# content type, headers, delivery mode, message id, timestamp, application id: in this order in the frame
_FLAGS = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 3

frame_head = struct.Struct(">BHL")  # kind, channel, size of the payload
method_head = struct.Struct(">BHLL")  # the same, and which method
content_head = struct.Struct(">BHLHHQH")  # the same, class, weight, size of the body, which properties
tag_and_bits = struct.Struct(">QB")
_settle = struct.Struct(">BHLLQBB")
_publish = struct.Struct(">LH")
_content = struct.Struct(">HHQH")
_long = struct.Struct(">L")
_quad = struct.Struct(">Q")


class Properties(NamedTuple):
    """What a received message says of itself."""

    headers: bytes
    since: int  # microseconds since the epoch; 0 if it doesn't say
    message_id: str
    deliveries: int = 0  # before this one
    again: bool = False  # another copy of it may have been queued


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
_AGAIN_FIELD = _short(AGAIN) + b"t\x01"


def publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """The frame that says where a message goes. Mandatory: what fits no queue is returned."""
    payload = _publish.pack(_PUBLISH, 0) + _short(exchange) + _short(routing_key) + _MANDATORY
    return frame_head.pack(METHOD, channel, len(payload)) + payload + _END


def publish_content(
    channel: int, message: Outgoing, since: float, frame_max: int, *, again: bool = False
) -> bytes:
    """The frames that carry a message's properties and body; `again` if it may have been queued already.

    Raises:
        ValueError: It doesn't fit into AMQP.
    """
    table = _SINCE_FIELD + _quad.pack(int(since * 1e6))
    if message.headers:
        table += _HEADERS_FIELD + _long.pack(len(message.headers)) + message.headers
    if again:
        table += _AGAIN_FIELD
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
    if len(payload) + OVERHEAD > frame_max:
        # RabbitMQ would close the connection, and with it everybody's publishing.
        raise ValueError(f"the headers of job {message.job_id} take more than a frame of {frame_max} bytes")
    header = frame_head.pack(HEADER, channel, len(payload)) + payload + _END
    if not body:
        return header
    if len(body) + OVERHEAD <= frame_max:
        return b"".join((header, frame_head.pack(BODY, channel, len(body)), body, _END))
    return header + b"".join(_split(channel, body, frame_max - OVERHEAD))


def _split(channel: int, body: bytes, size: int) -> list[bytes]:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return [frame_head.pack(BODY, channel, len(piece)) + piece + _END for piece in pieces]


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """The frame that acks one delivery, or all up to it."""
    return _settle.pack(METHOD, channel, 13, ACK, tag, multiple, _END[0])


def give_back(channel: int, tag: int) -> bytes:
    """The frame that puts a delivery back into its queue."""
    return _settle.pack(METHOD, channel, 13, NACK, tag, _REQUEUE, _END[0])


def read_properties(payload: bytes) -> Properties:
    """The properties out of a content header: the payload of its frame, from the flags on."""
    table_at = 2 + len(_TYPE) + 4
    since_at = table_at + len(_SINCE_FIELD)
    if payload[:2] == _FLAGS_BYTES and payload[2 : table_at - 4] == _TYPE:
        (size,) = _long.unpack_from(payload, table_at - 4)
        end = table_at + size
        if payload[table_at:since_at] == _SINCE_FIELD:
            (since,) = _quad.unpack_from(payload, since_at)
            headers_at = since_at + 8
            headers = b""
            if headers_at < end:
                value_at = headers_at + len(_HEADERS_FIELD) + 4
                headers = payload[value_at:end]
                if payload[headers_at : value_at - 4] != _HEADERS_FIELD or headers_at > end:
                    return _read_any(payload)
                if _long.unpack_from(payload, value_at - 4)[0] != len(headers):
                    return _read_any(payload)
            id_at = end + 2  # after the delivery mode and the length
            message_id = payload[id_at : id_at + payload[end + 1]].decode()
            return Properties(headers, since, message_id)
    return _read_any(payload)


_FLAGS_BYTES = _FLAGS.to_bytes(2, "big")


def _read_any(payload: bytes) -> Properties:
    """With other headers beside ours (delivered before, dead-lettered), or from somebody else."""
    properties = BasicProperties()
    properties.decode(payload)
    return properties_of(properties)


def properties_of(properties: BasicProperties) -> Properties:
    """The same, out of what pika has decoded."""
    table: Mapping[str, object] = properties.headers or {}
    headers = table.get(HEADERS, b"")
    if isinstance(headers, str):  # pika decodes what can be read as text
        headers = headers.encode()
    since = table.get(SINCE, 0)
    deliveries = table.get(DELIVERIES, 0)
    return Properties(
        headers if isinstance(headers, bytes) else b"",
        since if isinstance(since, int) else 0,
        properties.message_id or "",
        deliveries if isinstance(deliveries, int) else 0,
        table.get(AGAIN) is True,
    )
