"""pika's connection, with the doors that we need and it doesn't have.

This is the one place that reaches into pika's inside (1.4, pinned below 2): to write frames that are
encoded already, to read deliveries and confirms without the detour of a dozen objects each, to know when the
server was last heard, and to close a socket without a word.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from pika import SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.exceptions import StreamLostError
from pika.frame import decode_frame

from callboard.brokers.rabbitmq import frames
from callboard.brokers.rabbitmq.frames import Properties

#: Called with the tag, whether it was delivered before, the routing key, the properties and the body.
OnDelivery = Callable[[int, bool, bytes, Properties, bytes], None]
#: Called with the tag, whether it stands for all before it too, and whether it is a confirm (or a refusal).
OnConfirm = Callable[[int, bool, bool], None]

_FIRST_BYTES = (
    bytes([frames.METHOD]),
    b"A",
)  # of a server that speaks AMQP, or names the version that it speaks
_RECEIVE = 64 * 1024  # bytes at once; pika's 4 kB would cost a system call for every few messages


class Stream(SelectConnection):  # type: ignore[misc]  # pika says nothing of its types to others
    """One connection.

    Attributes:
        heard: When the server was last heard, by the monotonic clock.
        on_delivery: Who reads deliveries, by channel number. Messages of more than one body frame, and all on
            other channels, go through pika.
        on_confirm: Who reads confirms, by channel number.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.heard = 0.0
        self.on_delivery: dict[int, OnDelivery] = {}
        self.on_confirm: dict[int, OnConfirm] = {}
        self._unread = b""
        super().__init__(*args, **kwargs)

    def write(self, encoded: bytes) -> None:
        """Send whole frames, in one piece."""
        sent = self._send_at_once(encoded)
        if sent < len(encoded):
            self._output_marshaled_frames([encoded[sent:]])

    def _send_at_once(self, encoded: bytes) -> int:
        """Send what the socket takes now, and nothing if pika has bytes that come before; returns how many.

        pika would wait for the socket to be writable: two system calls and a turn of the loop for each write.
        """
        transport = self._transport
        if type(transport) is not _AsyncPlaintextTransport or transport.get_write_buffer_size():
            return 0
        try:
            sent: int = transport._sock.send(encoded)
        except OSError:
            return 0  # it would block, or is gone: pika finds out
        self.bytes_sent += sent
        return sent

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version, as far as it says one."""
        text = str((self.server_properties or {}).get("version", ""))
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    @property
    def heartbeat(self) -> float:
        """Seconds, as agreed with the server; 0 is none."""
        agreed = self.params.heartbeat
        return float(agreed) if isinstance(agreed, int | float) else 0.0

    @property
    def frame_max(self) -> int:
        """The largest frame that the server takes, in bytes."""
        return int(self.params.frame_max)

    def hang_up(self) -> None:
        """End the connection without a goodbye; the close callback follows."""
        if not self.is_closed:
            self._terminate_stream(StreamLostError("given up on this side"))

    def let_go(self) -> None:
        """Close the descriptor and nothing else: no goodbye, no shutdown, no callback.

        In a forked child anything else would end the connection of the parent.
        """
        with contextlib.suppress(AttributeError, OSError):
            self._transport._sock.close()

    # -- overridden

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = _RECEIVE
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        if not self.heard and data_in[:1] not in _FIRST_BYTES:
            self.hang_up()  # some who speak something else would keep us waiting
            return
        self.heard = time.monotonic()
        self.bytes_received += len(data_in)
        data = self._unread + data_in if self._unread else data_in
        at, size = 0, len(data)
        while (after := self._read(data, at, size)) > at:
            at = after
        self._unread = data[at:]

    def _read(self, data: bytes, at: int, size: int) -> int:
        """Read one frame, or one delivery; returns where the next begins, or `at` if this isn't all here."""
        if size - at < frames.OVERHEAD:
            return at
        kind: int
        channel: int
        payload: int
        kind, channel, payload = frames.frame_head.unpack_from(data, at)
        after = at + payload + frames.OVERHEAD
        if after > size and kind <= frames.BODY:
            return at
        if kind == frames.METHOD and channel:
            method = frames.method_head.unpack_from(data, at)[3]
            if method == frames.DELIVER and channel in self.on_delivery:
                if (end := self._read_delivery(data, at, after, size)) is not None:
                    return end
            elif method in (frames.ACK, frames.NACK) and channel in self.on_confirm:
                tag, bits = frames.tag_and_bits.unpack_from(data, at + 11)
                self.on_confirm[channel](tag, bool(bits & 1), method == frames.ACK)
                return after
        # pika finds out by itself how long a frame is, and whether it is one.
        consumed, frame = decode_frame(data[at:after])
        if frame is None:
            return at
        self._process_frame(frame)
        return at + int(consumed)

    def _read_delivery(self, data: bytes, at: int, header_at: int, size: int) -> int | None:
        """The same for a delivery. None: its frames are to be read one by one, by pika."""
        if size - header_at < 22:  # up to the flags
            return at
        kind, channel, payload, _, _, body_size, _ = frames.content_head.unpack_from(data, header_at)
        body_at = header_at + payload + frames.OVERHEAD
        end: int = body_at + body_size + frames.OVERHEAD if body_size else body_at
        if kind != frames.HEADER or body_size + frames.OVERHEAD > self.frame_max:
            return None
        if end > size:
            return at
        if body_size and frames.frame_head.unpack_from(data, body_at) != (frames.BODY, channel, body_size):
            return None
        tag_at = at + 12 + data[at + 11]
        tag, redelivered = frames.tag_and_bits.unpack_from(data, tag_at)
        key_at = tag_at + 10 + data[tag_at + 9]
        self.on_delivery[channel](
            tag,
            bool(redelivered),
            data[key_at + 1 : key_at + 1 + data[key_at]],
            frames.read_properties(data[header_at + 19 : body_at - 1]),
            data[body_at + 7 : end - 1] if body_size else b"",
        )
        return end


def let_go_of_loop(loop: IOLoop) -> None:
    """Close the descriptors of a loop that a forked child has inherited.

    Not by its own `close`: the epoll is shared with the parent, and unregistering would deafen it.
    """
    poller = loop._poller
    descriptors: tuple[Any, ...] = (getattr(poller, "_poll", None), poller._r_interrupt, poller._w_interrupt)
    for descriptor in descriptors:
        with contextlib.suppress(AttributeError, OSError):
            descriptor.close()
