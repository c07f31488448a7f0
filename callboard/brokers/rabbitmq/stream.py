"""pika's connection, with the doors that we need and it doesn't have.

This is the one place that reaches into pika's inside (1.4, pinned below 2): to write frames that are
encoded already, to know when the server was last heard, and to close a socket without a word.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from pika import SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.exceptions import StreamLostError


class Stream(SelectConnection):  # type: ignore[misc]  # pika says nothing of its types to others
    """One connection.

    Attributes:
        heard: When the server was last heard, by the monotonic clock.
    """

    heard: float = 0.0

    def write(self, frames: bytes) -> None:
        """Send whole frames, in one piece."""
        self._output_marshaled_frames([frames])

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

    def _on_data_available(self, data_in: bytes) -> None:
        self.heard = time.monotonic()
        super()._on_data_available(data_in)


def let_go_of_loop(loop: IOLoop) -> None:
    """Close the descriptors of a loop that a forked child has inherited.

    Not by its own `close`: the epoll is shared with the parent, and unregistering would deafen it.
    """
    poller = loop._poller
    descriptors: tuple[Any, ...] = (getattr(poller, "_poll", None), poller._r_interrupt, poller._w_interrupt)
    for descriptor in descriptors:
        with contextlib.suppress(AttributeError, OSError):
            descriptor.close()
