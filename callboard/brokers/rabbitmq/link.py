"""A connection to RabbitMQ in a thread of its own, reopened for ever.

Its life: `start` makes the thread; it connects to one address after the other; `up` is told of each new
connection and `down` of each that is lost; after every address has failed it waits, longer each time and
with jitter. `close` says goodbye. All callbacks run in the link's thread, which is the only one that may
touch the connection; others come in through `call` and `ask`.

A forked child inherits the socket but not the thread: it forgets the link without a word to the server, for
the connection is its parent's.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.exceptions import AMQPError, ConnectionWrongStateError

from callboard import forks
from callboard.brokers.outage import Outage
from callboard.brokers.rabbitmq.address import Address
from callboard.brokers.rabbitmq.outage import explain, is_refusal
from callboard.brokers.rabbitmq.script import Performance, Script
from callboard.brokers.rabbitmq.stream import Stream, let_go_of_loop
from callboard.errors import BrokerUnavailable
from callboard.loggers import get_logger

T = TypeVar("T")

log = get_logger(__name__)

_FIRST_PAUSE = 0.05


class Link:
    """One connection, kept open.

    Args:
        addresses: Where to connect, in this order.
        name: Who we are, for RabbitMQ's list of connections.
        up: Called with each new connection.
        down: Called when a connection that was up is lost.
        freed: Called when an alarm of the server's is over, so that publishing may go on.
        turned_away: Called with a sentence when the server refuses the user or the vhost, and always has:
            waiting won't help.
        longest_pause: The most seconds between two rounds of attempts.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        name: str,
        *,
        up: Callable[[Stream], None] = lambda _: None,
        down: Callable[[], None] = lambda: None,
        freed: Callable[[], None] = lambda: None,
        turned_away: Callable[[str], None] = lambda _: None,
        longest_pause: float = 5.0,
    ) -> None:
        self.name = name
        #: Why there is no connection: one sentence, or None while there is one.
        self.outage: str | None = f"RabbitMQ at {addresses[0]} hasn't answered yet"
        #: Why RabbitMQ takes no messages (a memory or disk alarm), or None.
        self.blocked: str | None = None
        #: How many connections there have been.
        self.opened = 0
        self._addresses = addresses
        self._up, self._down, self._freed, self._turned_away = up, down, freed, turned_away
        self._longest_pause = longest_pause
        self._stream: Stream | None = None  # open, or opening
        self._is_up = False
        self._position = 0
        self._failures = 0
        self._told_outage = Outage(connection=name)
        self._unasked: list[tuple[Script[Any], Callable[[Any, Exception | None], None]]] = []
        self._closing = False
        self._forgotten = False
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name=f"callboard {name}", daemon=True)
        forks.follow(self)

    # -- from any thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the thread, which connects."""
        _quiet_pika()
        self.call(self._connect)
        self._thread.start()

    def call(self, work: Callable[[], object]) -> None:
        """Run something in the link's thread, soon; not if the link is over."""
        if self._forgotten:
            return
        self._loop.add_callback_threadsafe(lambda: self._guard(work))

    def ask(self, script: Script[T], timeout: float) -> T:
        """Perform a script, and wait for its result.

        Raises:
            BrokerUnavailable: There was no connection, or no answer, within `timeout` seconds.
        """
        answered = threading.Event()
        outcome: list[Any] = [None, None]

        def done(result: Any, error: Exception | None) -> None:
            outcome[:] = result, error
            answered.set()

        self.call(lambda: self._ask(script, done))
        if not answered.wait(timeout):
            late = f"RabbitMQ at {self.where} gave no answer within {timeout:g} s"
            raise BrokerUnavailable(self.outage or self.blocked or late)
        if outcome[1] is not None:
            raise self._unavailable(outcome[1]) from outcome[1]
        result: T = outcome[0]
        return result

    @property
    def where(self) -> str:
        """The address that is tried or connected to now."""
        return str(self._address)

    def explain(self, error: BaseException) -> str:
        """What went wrong, in a sentence."""
        return explain(error, self._address)

    @property
    def is_over(self) -> bool:
        """It was closed, or is another process's."""
        return self._closing

    def close(self, timeout: float = 5.0) -> None:
        """Say goodbye to the server, and end the thread; without a goodbye if that takes too long."""
        if self._closing:
            return
        self._closing = True
        self.outage = "the connection to RabbitMQ was closed by its owner"
        if not self._thread.is_alive():
            self._loop.close()
            return
        self.call(self._say_goodbye)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.call(self._hang_up)
            self._thread.join(timeout)

    # -- in the link's thread ------------------------------------------------------------------------------

    @property
    def stream(self) -> Stream | None:
        """The connection, while it is up."""
        return self._stream if self._is_up else None

    def perform(self, script: Script[T], done: Callable[[T, Exception | None], None]) -> None:
        """Start a script; `done` is called with (result, None) or (None, error)."""
        Performance(script, self._open_channel, done).start()

    def later(self, seconds: float, work: Callable[[], object]) -> None:
        """Run something after a while."""
        self._loop.call_later(seconds, lambda: self._guard(work))

    def _open_channel(self, opened: Callable[[Channel], None]) -> Channel:
        if self.stream is None:
            raise ConnectionWrongStateError(self.outage or "not connected")
        return self.stream.channel(on_open_callback=opened)

    def _ask(self, script: Script[Any], done: Callable[[Any, Exception | None], None]) -> None:
        if self._is_up:
            self.perform(script, done)
        else:
            self._unasked.append((script, done))

    @property
    def _address(self) -> Address:
        return self._addresses[self._position]

    def _run(self) -> None:
        try:
            while not self._turn():
                pass
        finally:
            if self._stream is not None:
                self._stream.let_go()
            self._loop.close()

    def _turn(self) -> bool:
        """Run the loop; whether it has come to its end."""
        try:
            self._loop.start()
        except Exception:
            # Not ours, and it must not happen; but a worker that only looks alive would be worse.
            log.exception("rabbitmq_link_failed", connection=self.name)
            self._start_over()
            return False
        return True

    def _start_over(self) -> None:
        if self._stream is not None:
            self._stream.let_go()
        self._loop.close()
        self._loop = IOLoop()
        self._stream, self._is_up, self.blocked = None, False, None
        self.outage = f"the connection to RabbitMQ at {self.where} failed, and is opened again"
        self._guard(self._down)
        self.later(_FIRST_PAUSE, self._connect)

    def _guard(self, work: Callable[[], object]) -> None:
        """An exception out of a callback would end the thread, and with it the connection, for good."""
        try:
            work()
        except AMQPError as error:
            log.debug("rabbitmq_connection_went_under_a_request", error=repr(error))
        except Exception:
            log.exception("rabbitmq_link_failed", connection=self.name)
            if self._stream is not None and self._is_up:
                self._stream.hang_up()

    def _connect(self) -> None:
        if self._closing:
            return
        try:
            self._stream = Stream(
                self._address.parameters(self.name, in_a_hurry=len(self._addresses) > 1),
                on_open_callback=lambda stream: self._guard(lambda: self._opened(stream)),
                on_open_error_callback=lambda _, error: self._guard(lambda: self._not_opened(error)),
                on_close_callback=lambda _, error: self._guard(lambda: self._lost(error)),
                custom_ioloop=self._loop,
            )
        except OSError as error:  # a certificate file that can't be read
            self._not_opened(error)

    def _opened(self, stream: Stream) -> None:
        if self._closing:
            stream.close()
            return
        stream.add_on_connection_blocked_callback(lambda _, frame: self._block(frame.method.reason))
        stream.add_on_connection_unblocked_callback(lambda _, __: self._unblock())
        self._told_outage.end(address=self.where)
        self._is_up = True
        self.opened += 1
        self.outage = None
        self._failures = 0
        self._up(stream)
        waiting, self._unasked = self._unasked, []
        for script, done in waiting:
            self.perform(script, done)

    def _not_opened(self, error: BaseException) -> None:
        self._stream = None
        if self._closing:
            self._loop.stop()
            return
        self._note_outage(error)
        self._failures += 1
        self._position = (self._position + 1) % len(self._addresses)
        if self._position == 0 and not self.opened:
            self._give_up_waiting(error)
        self.later(self._pause(), self._connect)

    def _give_up_waiting(self, error: BaseException) -> None:
        """Nobody has answered, and never has: questions needn't wait; messages may, unless we are refused."""
        assert self.outage is not None
        waiting, self._unasked = self._unasked, []
        for _, done in waiting:
            done(None, BrokerUnavailable(self.outage))
        if is_refusal(error):
            self._turned_away(self.outage)

    def _lost(self, error: BaseException) -> None:
        self._stream, self._is_up, self.blocked = None, False, None
        self._note_outage(error)
        self._guard(self._down)  # whatever it raises, the connection is opened again
        if self._closing:
            self._loop.stop()
        else:
            # All clients lose a restarting server at once; they shouldn't all come back at once.
            self.later(random.uniform(0, _FIRST_PAUSE), self._connect)  # noqa: S311  no secret

    def _note_outage(self, error: BaseException) -> None:
        if self._closing:
            return
        self.outage = self.explain(error)
        self._told_outage.begin(self.outage)

    def _pause(self) -> float:
        rounds, rest = divmod(self._failures, len(self._addresses))
        if rest:
            return 0.0
        longest = min(_FIRST_PAUSE * 2.0 ** min(rounds, 20), self._longest_pause)
        return random.uniform(longest / 2, longest)  # noqa: S311  no secret

    def _block(self, reason: str) -> None:
        self.blocked = f"RabbitMQ at {self.where} takes no messages now: {reason}"
        log.warning("broker_blocked", reason=self.blocked, connection=self.name)

    def _unblock(self) -> None:
        log.info("broker_unblocked", connection=self.name)
        self.blocked = None
        self._guard(self._freed)

    def _unavailable(self, error: Exception) -> Exception:
        if isinstance(error, AMQPError):
            return BrokerUnavailable(self.explain(error))
        return error

    def _say_goodbye(self) -> None:
        if self._stream is None:
            self._loop.stop()
        elif self._is_up:
            self._stream.close()
        else:
            self._stream.hang_up()

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.let_go()
        self._loop.stop()

    # -- in a forked child -----------------------------------------------------------------------------------

    def forked(self) -> None:
        """Close the inherited descriptors, silently."""
        self._closing = self._forgotten = True
        if self._stream is not None:
            self._stream.let_go()
        let_go_of_loop(self._loop)


def _quiet_pika() -> None:
    """pika logs each failed connection several times, with tracebacks; the link says it once, in a sentence."""
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
