"""Requests to RabbitMQ that await their answers, written as a generator that runs inside a link's thread.

A script yields requests, each a method of pika's `Channel` with its arguments bound, and is sent the
answers::

    def count(queue: str) -> Script[int]:
        answer = yield partial(Channel.queue_declare, queue=queue, passive=True)
        return answer.method.message_count

It has a channel of its own. When RabbitMQ refuses a request it closes the channel; the script is thrown
pika's `ChannelClosedByBroker`, may catch it, and goes on with a fresh channel.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from pika.channel import Channel
from pika.exceptions import AMQPError

T = TypeVar("T")

Request = Callable[..., None]
Script = Generator[Request, Any, T]


class Performance:
    """One run of a script. `done` is called with (result, None) or (None, error), once."""

    def __init__(
        self,
        script: Script[Any],
        open_channel: Callable[[Callable[[Channel], None]], Channel],
        done: Callable[[Any, Exception | None], None],
    ) -> None:
        self._script = script
        self._open_channel = open_channel
        self._done = done
        self._channel: Channel | None = None
        self._waiting: Request | None = None
        self._over = False

    def start(self) -> None:
        self._go_on(lambda: next(self._script))

    def _go_on(self, step: Callable[[], Request]) -> None:
        try:
            self._waiting = step()
        except StopIteration as end:
            self._finish(end.value, None)
        except Exception as error:  # noqa: BLE001  whoever asked hears of it, and must not wait for ever
            self._finish(None, error)
        else:
            self._ask()

    def _ask(self) -> None:
        try:
            if self._channel is None:
                self._channel = self._open_channel(self._opened)
                self._channel.add_on_close_callback(self._closed)
            elif self._channel.is_open:
                assert self._waiting is not None
                self._waiting(self._channel, callback=self._answered)
        except AMQPError as error:  # the connection closed under us
            self._fail(error)

    def _opened(self, _channel: Channel) -> None:
        self._ask()

    def _answered(self, answer: Any) -> None:
        if not self._over:
            self._go_on(lambda: self._script.send(answer))

    def _closed(self, channel: Channel, reason: Exception) -> None:
        if channel is self._channel:
            self._channel = None
            self._fail(reason)

    def _fail(self, error: Exception) -> None:
        if not self._over:
            self._go_on(lambda: self._script.throw(error))

    def _finish(self, result: Any, error: Exception | None) -> None:
        self._over = True
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
        self._done(result, error)
