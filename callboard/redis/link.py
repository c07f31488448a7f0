"""One connection to Redis, opened when it is needed and again when it was lost.

Whoever has a link calls it from one thread at a time, and says by when. A call that fails says whether it may have
been done all the same. After a fork the child's link is closed without a word, for the connection is its parent's.
"""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis.exceptions

from callboard import forks
from callboard.redis.address import Address, Connection
from callboard.redis.health import Health
from callboard.redis.outage import Refused, refused, unreachable
from callboard.redis.scripts import Script

_CONNECT = 5.0  # seconds for a connection and its handshake, if the caller has so many
_LEAST = 0.001
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two attempts to connect

#: Answers that redis-py counts among the broken connections, and puts back to be read again.
_LAST_WORDS = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
)

#: What a server answers that isn't the primary any more.
_ELSEWHERE = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
)

Command = Sequence[str | bytes | int]


class _Forgotten(Refused):
    """Redis doesn't know the script: it was restarted, or is another one."""


class Link:
    """One connection.

    Args:
        address: Where to.
        namespace: What separates our keys from another app's.
        name: Who we are, for Redis's list of clients.
        health: What is looked at whenever a connection is made.
        script: Gives the scripts that it runs, by name.
    """

    def __init__(
        self, address: Address, namespace: str, name: str, health: Health, script: Callable[[str], Script]
    ) -> None:
        self.address = self._home = address
        self._base = base_of(namespace)
        self._name = re.sub(r"[^!-~]", "_", name)  # Redis takes no spaces here
        self._health = health
        self._script = script
        self._connection: Connection | None = None
        self._failures = 0
        forks.follow(self)

    @property
    def connection(self) -> Connection | None:
        """What redis-py has of it, to wait for what comes unasked."""
        return self._connection

    @property
    def is_up(self) -> bool:
        """Whether it is connected, as far as we know."""
        return self._connection is not None

    def connect(self, until: float) -> None:
        """Connect, if it isn't.

        Raises:
            Unreachable, Refused
        """
        if self._connection is not None:
            return
        timeout = max(_LEAST, min(_CONNECT, until - time.monotonic()))
        connection = self.address.connection(timeout)
        try:
            connection.connect()
        except (redis.exceptions.RedisError, OSError) as error:
            self._failures += 1
            failure = unreachable(error, self.address, sent=False)
            self.address = self._home
            raise failure from error
        self._connection = connection
        try:
            self._greet(time.monotonic() + timeout)
        except BaseException:
            self._failures += 1
            self.close()
            raise

    def _greet(self, until: float) -> None:
        greetings: list[Command] = []
        address = self.address
        if address.password or address.user:
            greetings.append(["AUTH", *filter(None, [address.user]), address.password])
        if address.db:
            greetings.append(["SELECT", address.db])
        answers = self._ask(
            [*greetings, *self._health.questions, ["CLIENT", "SETNAME", self._name]], until=until
        )
        for answer in answers[: len(greetings)]:
            if isinstance(answer, redis.exceptions.RedisError):
                raise refused(answer, address)
        self._health.examine(answers[len(greetings) : -1], address)

    def pause(self) -> float:
        """How long to wait before connecting again: longer each time, and not all of us at the same moment."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - it guards nothing

    def run(self, name: str, order: object, contents: Sequence[bytes] = (), *, until: float) -> Any:
        """Run a script.

        Raises:
            Unreachable: There was no connection, or no answer in time. The connection is closed then.
            Refused: Nothing was done.
        """
        wanted = self._script(name)
        order_and_contents = [msgspec.msgpack.encode(order), *contents]
        try:
            return self.ask("EVALSHA", wanted.sha, 1, self._base, *order_and_contents, until=until)
        except _Forgotten:
            self.ask("SCRIPT", "LOAD", wanted.text, until=until)
            return self.ask("EVALSHA", wanted.sha, 1, self._base, *order_and_contents, until=until)

    def ask(self, *command: str | bytes | int, until: float) -> Any:
        """Run a plain command.

        Raises:
            Unreachable, Refused
        """
        self.connect(until)
        (answer,) = self._ask([command], until=until)
        if isinstance(answer, redis.exceptions.MovedError):
            # Of a cluster, another node has our keys, all of which are in one slot.
            self.close()
            self.address = dataclasses.replace(
                self.address, host=answer.host or self.address.host, port=answer.port
            )
            self.connect(until)
            (answer,) = self._ask([command], until=until)
        if isinstance(answer, redis.exceptions.NoScriptError):
            raise _Forgotten(str(answer), passing=True)
        if isinstance(answer, _ELSEWHERE):
            self.close()  # the name in the URL may lead to the new primary by now
            self.address = self._home
        if isinstance(answer, redis.exceptions.RedisError):
            self._failures += 1
            raise refused(answer, self.address)
        self._failures = 0
        return answer

    def _ask(self, commands: Sequence[Command], *, until: float) -> list[Any]:
        """The answers to some commands, errors among them."""
        connection = self._connection
        assert connection is not None
        try:
            self._send(connection, commands, until)
            return [self._receive(connection, until) for _ in commands]
        except _LAST_WORDS as error:
            self.close()
            self._failures += 1
            raise refused(error, self.address) from error
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            self.close()
            self._failures += 1
            raise unreachable(error, self.address, sent=True) from error
        except BaseException:  # such as a time limit, between a question and its answer
            self.close()
            raise

    @staticmethod
    def _send(connection: Connection, commands: Sequence[Command], until: float) -> None:
        packed = b"".join(part for command in commands for part in connection.pack_command(*command))
        sock = connection._sock
        sock.settimeout(max(_LEAST, until - time.monotonic()))
        sock.sendall(packed)

    @staticmethod
    def _receive(connection: Connection, until: float) -> Any:
        try:
            return connection.read_response(
                timeout=max(_LEAST, until - time.monotonic()), disconnect_on_error=False
            )
        except redis.exceptions.ResponseError as error:
            return error

    def close(self) -> None:
        """Hang up. It may be used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def forked(self) -> None:
        """Let go of the parent's connection."""
        self.close()  # redis-py sees that it is another process, and shuts nothing down


def base_of(namespace: str) -> str:
    """What every key of a namespace begins with."""
    return f"callboard:{{{namespace or '.'}}}:"


def channel_of(namespace: str, kind: str, name: str) -> str:
    """The name of a channel."""
    return f"{base_of(namespace)}{kind}:{name}"
