"""What we encode, pika decodes, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.adapters.select_connection import IOLoop
from pika.frame import Body, Header, Method, decode_frame
from pika.spec import Basic, BasicProperties

from callboard.brokers.driver import Outgoing
from callboard.brokers.rabbitmq import frames
from callboard.brokers.rabbitmq.frames import Properties
from callboard.brokers.rabbitmq.stream import Stream

FRAME_MAX = 4096

names = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=60)
messages = st.builds(
    Outgoing, queue=names, body=st.binary(max_size=300), job_id=names, headers=st.binary(max_size=200)
)


def decoded(data: bytes) -> list[Any]:
    """The frames in a piece of bytes, as pika reads them."""
    found = []
    while data:
        consumed, frame = decode_frame(data)
        assert consumed
        found.append(frame)
        data = data[consumed:]
    return found


def delivered(tag: int, message: Outgoing, since: float, *, redelivered: bool = False) -> bytes:
    """A delivery as RabbitMQ sends it, on channel 3."""
    method = Basic.Deliver("consumer-1", tag, redelivered, "", message.queue)
    return bytes(Method(3, method).marshal()) + frames.publish_content(3, message, since, FRAME_MAX)


@given(message=messages, since=st.floats(min_value=0, max_value=4e9))
def test_pika_reads_what_is_published(message: Outgoing, since: float) -> None:
    data = frames.publish_method(7, "exchange", message.queue)
    data += frames.publish_content(7, message, since, FRAME_MAX)
    method, header, *bodies = decoded(data)
    assert isinstance(method.method, Basic.Publish)
    assert (method.channel_number, method.method.exchange) == (7, "exchange")
    assert (method.method.routing_key, method.method.mandatory) == (message.queue, True)
    properties = header.properties
    assert (properties.delivery_mode, properties.message_id) == (2, message.job_id)
    assert properties.timestamp == int(since)
    assert frames.properties_of(properties) == Properties(message.headers, int(since * 1e6), message.job_id)
    assert header.body_size == len(message.body)
    assert b"".join(body.fragment for body in bodies) == message.body


def test_a_message_says_that_it_was_written_before_and_how_often_it_was_delivered() -> None:
    message = Outgoing("q", b"", "id", b"headers")
    (header,) = decoded(frames.publish_content(1, message, 2.0, FRAME_MAX, again=True))
    assert frames.properties_of(header.properties) == Properties(b"headers", 2_000_000, "id", 0, again=True)
    header.properties.headers["x-delivery-count"] = 3
    payload = header.marshal()[19:-1]
    assert frames.read_properties(payload) == Properties(b"headers", 2_000_000, "id", 3, again=True)


def test_a_body_that_fits_no_frame_is_split() -> None:
    message = Outgoing("q", bytes(range(256)) * 40, "id")
    _, *bodies = decoded(frames.publish_content(1, message, 0.0, FRAME_MAX))
    assert all(isinstance(body, Body) and len(body.marshal()) <= FRAME_MAX for body in bodies)
    assert b"".join(body.fragment for body in bodies) == message.body


def test_headers_that_fit_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="headers of job id"):
        frames.publish_content(1, Outgoing("q", b"", "id", b"x" * FRAME_MAX), 0.0, FRAME_MAX)


def test_a_name_that_amqp_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than the 255 bytes"):
        frames.publish_method(1, "", "q" * 256)


@pytest.mark.parametrize("multiple", [True, False])
def test_pika_reads_our_acks(multiple: bool) -> None:
    (frame,) = decoded(frames.ack(5, 2**40, multiple=multiple))
    assert isinstance(frame.method, Basic.Ack)
    found = (frame.channel_number, frame.method.delivery_tag, bool(frame.method.multiple))
    assert found == (5, 2**40, multiple)


def test_pika_reads_what_we_give_back() -> None:
    (frame,) = decoded(frames.give_back(5, 9))
    assert isinstance(frame.method, Basic.Nack)
    assert (frame.method.delivery_tag, bool(frame.method.multiple), bool(frame.method.requeue)) == (
        9,
        False,
        True,
    )


@given(message=messages, since=st.floats(min_value=0, max_value=4e9))
def test_the_quick_reading_of_properties_agrees_with_pika(message: Outgoing, since: float) -> None:
    header = decoded(frames.publish_content(1, message, since, FRAME_MAX))[0]
    payload = header.marshal()[19:-1]
    assert frames.read_properties(payload) == frames.properties_of(header.properties)


@given(
    table=st.dictionaries(
        st.sampled_from(["callboard", "since_us", "x-death", "x-delivery-count"]),
        st.one_of(st.binary(max_size=40), st.integers(0, 2**40), st.text(max_size=20)),
    ),
    content_type=st.sampled_from([None, "application/json", "text/plain"]),
    message_id=st.one_of(st.none(), st.text(max_size=20)),
)
def test_whatever_else_a_message_carries_is_read_as_pika_reads_it(
    table: dict[str, Any], content_type: str | None, message_id: str | None
) -> None:
    properties = BasicProperties(content_type=content_type, headers=table or None, message_id=message_id)
    payload = bytes(Header(1, 0, properties).marshal())[19:-1]
    again = BasicProperties()
    again.decode(payload)
    assert frames.read_properties(payload) == frames.properties_of(again)


# -- the stream


@contextmanager
def unconnected() -> Iterator[Stream]:
    loop = IOLoop()
    found = Stream(pika.ConnectionParameters(), custom_ioloop=loop, internal_connection_workflow=False)
    found.params.frame_max = FRAME_MAX
    try:
        yield found
    finally:
        loop.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    with unconnected() as found:
        yield found


@given(sent=st.lists(messages, max_size=8), data=st.data())
def test_deliveries_are_read_however_the_bytes_are_cut(sent: list[Outgoing], data: st.DataObject) -> None:
    with unconnected() as stream:
        check_that_deliveries_are_read(stream, sent, data)


def check_that_deliveries_are_read(stream: Stream, sent: list[Outgoing], data: st.DataObject) -> None:
    came: list[tuple[int, bool, bytes, Properties, bytes]] = []
    confirmed: list[tuple[int, bool, bool]] = []
    stream.on_delivery[3] = lambda *arrival: came.append(arrival)
    stream.on_confirm[4] = lambda *confirm: confirmed.append(confirm)
    wire = b""
    for tag, message in enumerate(sent, 1):
        wire += delivered(tag, message, 1.5, redelivered=tag % 2 == 0) + frames.ack(
            4, tag, multiple=tag % 3 == 0
        )
        wire += b"\x08\x00\x00\x00\x00\x00\x00\xce"  # a heartbeat, which pika reads
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        stream._on_data_available(wire[:size])
        wire = wire[size:]
    assert came == [
        (tag, tag % 2 == 0, m.queue.encode(), Properties(m.headers, 1_500_000, m.job_id), m.body)
        for tag, m in enumerate(sent, 1)
    ]
    assert confirmed == [(tag, tag % 3 == 0, True) for tag in range(1, len(sent) + 1)]


def test_a_refusal_is_told_from_a_confirm(stream: Stream) -> None:
    confirmed: list[tuple[int, bool, bool]] = []
    stream.on_confirm[4] = lambda *confirm: confirmed.append(confirm)
    stream._on_data_available(frames.give_back(4, 8))
    assert confirmed == [(8, False, False)]
