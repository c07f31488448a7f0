"""A TCP proxy that misbehaves when it is told to, as networks do.

Clients connect to it instead of to a server, and it forwards what both say. `cut` resets the connections that
there are, `stall` stops forwarding in one or both directions, `half_open` forgets them without a word while both
sides think that they live, `slow` makes everything late or narrow, `refuse` lets nobody in. `heal` ends it all;
connections that were forgotten stay so.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from callboard.servers.process import HOST

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

Direction = Literal["to server", "to client", "both"]

_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST
_ANSWER = 30.0  # seconds within which the proxy's own thread does what it is told


class FaultProxy:
    """Forwards between clients and one server. Use it in a `with` block; its methods are for any thread.

    Args:
        port: the server's, on the loopback.
        host: the server's.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self._target = host, port
        self._listener = socket.create_server((HOST, 0))
        self._refusing = False
        self._latency = 0.0  # seconds
        self._bandwidth: float | None = None  # bytes a second
        self._serving: dict[asyncio.Task[None], _Pair] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._open = {way: asyncio.Event() for way in _ways("both")}
        for event in self._open.values():
            event.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="callboard fault proxy", daemon=True)
        #: How many connections were made through it.
        self.accepted = 0

    @property
    def port(self) -> int:
        """Where clients connect to."""
        port: int = self._listener.getsockname()[1]
        return port

    def url(self, server_url: str) -> str:
        """A server's URL, by way of this proxy."""
        parts = urlsplit(server_url)
        credentials = parts.netloc.rpartition("@")[0]
        netloc = f"{credentials}@{HOST}:{self.port}" if credentials else f"{HOST}:{self.port}"
        return urlunsplit(parts._replace(netloc=netloc))

    @property
    def connections(self) -> int:
        """How many there are now, not counting those that were forgotten."""
        return self._ask(self._count)

    # -- faults ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset all connections, to both sides. New ones are let in."""
        self._ask(self._cut)

    def refuse(self) -> None:
        """Reset all connections, and whoever connects, until `heal`."""
        self._refusing = True
        self._ask(self._cut)

    def stall(self, direction: Direction = "both") -> None:
        """Hold back what is said, also on new connections, until `heal`: then all of it arrives."""
        for way in _ways(direction):
            self._loop.call_soon_threadsafe(self._open[way].clear)
        self._ask(_nothing)

    def half_open(self) -> None:
        """Forget the connections that there are: what is said on them goes nowhere, for good, and neither side is
        told. New ones work."""
        self._ask(self._forget)

    def slow(self, *, latency: float = 0.0, bandwidth: float | None = None) -> None:
        """Make what is said late by `latency` seconds, or no more than `bandwidth` bytes a second each way."""
        self._latency, self._bandwidth = latency, bandwidth

    def heal(self) -> None:
        """Be a good proxy again."""
        self._refusing, self._latency, self._bandwidth = False, 0.0, None
        for event in self._open.values():
            self._loop.call_soon_threadsafe(event.set)
        self._ask(_nothing)

    # -- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._listener.setblocking(False)
        self._thread.start()
        self._ask(_nothing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Reset what is connected, and listen no more. Twice is fine."""
        if not self._loop.is_closed() and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(_ANSWER)
        self._listener.close()
        if not self._thread.is_alive():
            self._loop.close()

    # -- in the proxy's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._accept())
        self._loop.run_until_complete(self._end(self._serving))
        self._loop.close()

    async def _accept(self) -> None:
        self._accepting = asyncio.current_task()
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            if self._refusing:
                _reset(client)
            else:
                pair = _Pair(client)
                task = self._loop.create_task(self._serve(pair))
                self._serving[task] = pair
                task.add_done_callback(lambda task: self._serving.pop(task, None))

    def _stop(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()

    async def _serve(self, pair: _Pair) -> None:
        try:
            await self._loop.sock_connect(pair.server, self._target)
            pair.connected = True
            self.accepted += 1
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(pair, pair.client, pair.server, "to server"))
                both.create_task(self._forward(pair, pair.server, pair.client, "to client"))
        except* OSError:
            pair.reset()  # nobody is there, or one side was reset: so is the other
        except* asyncio.CancelledError:
            pair.reset()
            raise
        finally:
            pair.close()

    async def _forward(self, pair: _Pair, source: socket.socket, sink: socket.socket, way: str) -> None:
        """Forward until one side has no more to say, and pass that on."""
        while data := await self._loop.sock_recv(source, _CHUNK):
            await self._open[way].wait()
            if self._latency:
                await asyncio.sleep(self._latency)
            if self._bandwidth:
                await asyncio.sleep(len(data) / self._bandwidth)
            if not pair.forgotten:
                await self._loop.sock_sendall(sink, data)
        if not pair.forgotten:
            sink.shutdown(socket.SHUT_WR)

    async def _cut(self) -> None:
        await self._end(task for task, pair in self._serving.items() if not pair.forgotten)

    async def _end(self, serving: Iterable[asyncio.Task[None]]) -> None:
        ended = list(serving)
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _forget(self) -> None:
        for pair in self._serving.values():
            pair.forgotten = True

    async def _count(self) -> int:
        return sum(pair.connected and not pair.forgotten for pair in self._serving.values())

    def _ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something in the proxy's thread."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(_ANSWER)


class _Pair:
    """The two sockets of a connection."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server = socket.socket()
        self.connected = False
        self.forgotten = False
        for end in (self.client, self.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        for end in (self.client, self.server):
            _reset(end)

    def close(self) -> None:
        for end in (self.client, self.server):
            end.close()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()


def _ways(direction: Direction) -> list[str]:
    return ["to server", "to client"] if direction == "both" else [direction]


async def _nothing() -> None:
    """Come back when all that was asked before is done."""
