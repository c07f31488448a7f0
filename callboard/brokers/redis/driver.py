"""The driver itself: what is asked of it, handed to the rooms beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from callboard import forks
from callboard.brokers.driver import (
    Decide,
    Driver,
    Intake,
    IntakeOptions,
    Outgoing,
    QueueCounts,
    StoredMessage,
    WalkReport,
)
from callboard.brokers.redis.intake import RedisIntake, warn_of_rescued
from callboard.brokers.redis.messages import unpack_stored
from callboard.brokers.redis.publisher import Publisher
from callboard.brokers.redis.scripts import script
from callboard.brokers.redis.walk import Walk
from callboard.errors import BrokerUnavailable
from callboard.redis import address
from callboard.redis.health import Health
from callboard.redis.link import Link, base_of
from callboard.redis.outage import Unreachable

_ANSWER = 5.0  # seconds
_LAST_BREATH = (
    1.0  # seconds within which Redis should see that the connections of an ended process have ended
)
_PURGED_AT_ONCE = 1000


class RedisDriver(Driver):
    """Keeps messages in Redis. Connects when it is first used.

    Args:
        url: See `callboard.redis.address`.
        namespace: What separates our keys from another app's.
        lease: Seconds of silence after which a worker whose connection has ended has lost its claims. The claims of
            a killed worker are ready again after 1.0 to 1.2 of it; after 2.5 to 2.7 if its whole host vanished.

    Raises:
        SettingsError: The URL can't be read.
    """

    name: ClassVar[str] = "redis"
    networked: ClassVar[bool] = True
    claims_are_leases: ClassVar[bool] = True

    def __init__(self, url: str, *, namespace: str = "", lease: float = 10.0) -> None:
        self.namespace = namespace
        self.lease = lease
        self._address = address.parse(url)
        self._health = Health("jobs")
        self._declared: set[str] = set()
        self._intakes: set[RedisIntake] = set()
        self.publisher = Publisher(self.new_link("sender"))
        self._asking = self.new_link("asking")
        self._lock = threading.Lock()  # held while the link for asking is in use
        self._closed = False
        forks.follow(self)

    def new_link(self, name: str) -> Link:
        """One more connection, not opened yet."""
        return Link(self._address, self.namespace, f"callboard:{name}", self._health, script)

    def forked(self) -> None:
        """Somebody who isn't in this process may have held the lock."""
        self._lock = threading.Lock()
        self._intakes = set()

    def declare(self, queue: str) -> None:
        self._declared.add(queue)

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        self.publisher.put(messages, deadline)

    def open_intake(self, options: IntakeOptions) -> Intake:
        intake = RedisIntake(self, options)
        self._intakes.add(intake)
        return intake

    def forget(self, intake: RedisIntake) -> None:
        """The intake closes."""
        self._intakes.discard(intake)

    # -- asking and changing

    def queues(self) -> list[str]:
        found = self._ask(
            lambda until: self._asking.ask("SMEMBERS", f"{base_of(self.namespace)}queues", until=until)
        )
        return sorted(self._declared | {name.decode() for name in found})

    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        names = list(queues)
        found = self._run("count", (names,))
        return {
            name: QueueCounts(ready, claimed, delayed, consumers, oldest / 1_000_000)
            for name, (ready, delayed, claimed, consumers, oldest) in zip(names, found, strict=True)
        }

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        return [
            unpack_stored(queue, value) for value in self._run("peek", (queue, limit)) if value is not None
        ]

    def purge(self, queue: str) -> int:
        gone, left = self._run("purge", (queue, True, _PURGED_AT_ONCE))
        while left:
            _, left = self._run("purge", (queue, False, _PURGED_AT_ONCE))
        return int(gone)

    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        with Walk(self, queue) as walk:
            return walk.go(decide, progress)

    def bury(self, worker: str) -> None:
        """Who still listens isn't buried: another host may have the same name, and Redis may be slow to see that
        a connection has ended."""
        end = time.monotonic() + _LAST_BREATH
        while True:
            listening, *dead = self._run("bury", (worker,))
            if dead:
                warn_of_rescued(dead)
            if not listening or time.monotonic() > end:
                return
            time.sleep(0.05)

    def ping(self) -> None:
        self._run("put", ("ping", 1, [], []))

    def _run(self, script: str, order: object) -> Any:
        return self._ask(lambda until: self._asking.run(script, order, until=until))

    def _ask(self, question: Callable[[float], Any]) -> Any:
        until = time.monotonic() + _ANSWER
        if not self._lock.acquire(timeout=_ANSWER):
            raise BrokerUnavailable(f"Redis at {self._address} is slow: it was asked for {_ANSWER:g} s")
        try:
            was_up = self._asking.is_up
            try:
                return question(until)
            except Unreachable:
                if not was_up:
                    raise
                # The connection was an old one, which Redis or a firewall may have closed long ago.
                return question(until)
        finally:
            self._lock.release()

    def close(self) -> None:
        for intake in list(self._intakes):
            intake.close()
        self.publisher.close()
        if self._lock.acquire(timeout=_ANSWER):
            self._asking.close()
            self._lock.release()
