"""How a worker that waits is woken: Redis tells it on a channel of its own, this process through a pipe.

The channel's connection also proves that the worker's process lives: it ends with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading

import redis.exceptions

from callboard import forks
from callboard.redis.link import Link
from callboard.redis.outage import unreachable


class Bell:
    """A subscription, and a pipe.

    Args:
        link: A connection for it alone.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._channel = ""
        self._mutex = threading.Lock()  # between ringing and closing
        forks.follow(self)

    def listen(self, channel: str, until: float) -> None:
        """Subscribe, if it isn't.

        Raises:
            Unreachable, Refused
        """
        if self._link.is_up and self._channel == channel:
            return
        self._link.close()
        self._channel = ""
        self._link.ask("SSUBSCRIBE", channel, until=until)
        self._channel = channel

    def wait(self, timeout: float) -> None:
        """Sleep until it rings, or `timeout` seconds are over.

        Raises:
            Unreachable: The subscription is gone.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        connection = self._link.connection
        if connection is not None:
            poll.register(connection._sock, select.POLLIN)
        rung = {fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)}
        if self._reader in rung:
            rung.discard(self._reader)
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)
        if rung and connection is not None:
            try:
                while connection.can_read(0):
                    connection.read_response(timeout=1.0)
            except (redis.exceptions.RedisError, OSError) as error:
                self._link.close()
                raise unreachable(error, self._link.address, sent=False) from error

    def ring(self) -> None:
        """Let `wait` return now. From any thread."""
        with self._mutex, contextlib.suppress(BlockingIOError):
            if self._writer >= 0:
                os.write(self._writer, b"!")

    def close(self) -> None:
        """Hang up for good."""
        self._link.close()
        with self._mutex:
            for end in (self._reader, self._writer):
                if end >= 0:
                    os.close(end)
            self._reader = self._writer = -1

    def forked(self) -> None:
        """The pipe is the parent's; the link closes itself."""
        self._mutex = threading.Lock()
        self.close()
