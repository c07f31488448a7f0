"""A worker's hand on Redis: claims, acks, the wait for something to do, and the proof that it lives.

Two connections: one by which it claims and lets go, one on which it is rung. A thread, the keeper, applies the acks
that no `fetch` takes along, and shows several times within a lease that the worker lives.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from callboard import forks
from callboard.brokers.asking import AskingIntake
from callboard.brokers.driver import Delivery, IntakeOptions, Outgoing, PutError
from callboard.brokers.redis.messages import unpack_delivery
from callboard.errors import BrokerUnavailable
from callboard.loggers import get_logger
from callboard.queues import priority_of
from callboard.redis.bell import Bell
from callboard.redis.link import channel_of
from callboard.redis.outage import Refused, Unreachable

if TYPE_CHECKING:
    from callboard.brokers.redis.driver import RedisDriver

log = get_logger(__name__)

LONGEST_SLEEP = 1.0  # seconds after which a waiting worker looks by itself; the scripts rely on it
MOVE_DEADLINE = 10.0
_ANSWER = 5.0  # seconds within which Redis answers
_ACK_DELAY = 0.01  # seconds that an ack waits for a fetch to take it along
_AT_ONCE = 1000  # claims or acks, for Lua passes no more than some thousands of arguments
_BEATS = 5  # in a lease
_DOUBT = 1.0  # seconds within which Redis says whether a claim in doubt is still ours

# What a claim asks for if there is nothing.
_WAIT, _WAIT_NO_MORE, _AS_BEFORE = 1, 0, -1


class RedisIntake(AskingIntake):
    """Claims messages for one worker."""

    def __init__(self, driver: RedisDriver, options: IntakeOptions) -> None:
        self._driver = driver
        self._options = options
        self._queues = list(dict.fromkeys(options.queues))
        self._paused = options.paused
        self._lease = driver.lease
        name = f"worker:{options.worker}"
        self._link = driver.new_link(name)
        self._bell = Bell(driver.new_link(f"{name}:bell"))
        self._reset()
        forks.follow(self)

    def _reset(self) -> None:
        super()._reset()
        self._worker = f"{self._options.worker}:{secrets.token_hex(4)}"  # our name in Redis
        self._connections = 0
        self._is_known = False  # on this connection
        self._held: dict[str, Delivery] = {}
        self._moving: set[str] = set()  # those of them that a move was tried for, so they have run already
        self._acks: list[Delivery] = []
        self._returns: list[Delivery] = []
        self._stops_waiting = False
        self._keeper: threading.Thread | None = None
        self._heard = 0.0  # when Redis last heard of us for certain, by the monotonic clock
        self._tiers: list[list[str]] = []
        self._names: list[str] = []
        self._tiers_without: frozenset[str] | None = None
        self._unwanted: list[str] = []
        self._turn = 0

    # -- claiming ------------------------------------------------------------------------------------------

    def _attempt(self, limit: int, end: float) -> list[Delivery]:
        """Claim; if there is nothing, wait until there is."""
        waits = time.monotonic() < end
        while True:
            found, next_due = self._claim(limit, _WAIT if waits else _AS_BEFORE)
            now = time.monotonic()
            if found or self._is_over(end):
                return found
            until = min(end, now + LONGEST_SLEEP)
            self._bell.wait((until if next_due is None else min(until, now + next_due)) - now)
            if self._is_over(end):
                return []

    def _claim(self, limit: int, waits: int) -> tuple[list[Delivery], float | None]:
        """Apply the acks and claim what there is room for, in one go. Also returns the seconds until something
        is due."""
        with self._applying:
            if self._closed:
                return [], None
            room = min(limit, self._options.budget - len(self._held), _AT_ONCE)
            self._full = len(self._held) >= self._options.budget
            if room <= 0 and not self._acks and not self._returns:
                return [], None
            until = time.monotonic() + _ANSWER
            self._enter(until)
            self._bell.listen(channel_of(self._driver.namespace, "bell", self._worker), until)
            self._stops_waiting = False
            names = self._order_tiers()
            answer = self._call(max(0, room), waits if room > 0 else _WAIT_NO_MORE, until=until)
            self._turn, soonest = answer[1], int(answer[2])
            meta = answer[3].decode().split()
            found: list[Delivery] = []
            for which, token, value in zip(meta[::2], meta[1::2], answer[4], strict=True):
                delivery = unpack_delivery(names[int(which)], token, value or b"")
                if value is None:
                    log.error("message_missing", queue=delivery.queue, id=token)
                    self._acks.append(delivery)
                else:
                    self._held[token] = delivery
                    found.append(delivery)
        return found, None if soonest < 0 else soonest / 1e6

    def _call(self, room: int, waits: int, *, until: float, looks: bool = False) -> list[Any]:
        """Run the script that claims and lets go."""
        acks, returns, unwanted = self._acks[:_AT_ONCE], self._returns[:_AT_ONCE], self._unwanted
        order = (
            self._worker,
            self._connections,
            [delivery.token for delivery in acks],
            [delivery.token for delivery in returns],
            room,
            self._turn,
            self._tiers if room else [],
            waits,
            unwanted,
            self._lease if looks else 0,
        )
        asked = time.monotonic()
        try:
            answer: list[Any] = self._link.run("claim", order, until=until)
        except Unreachable:
            self._is_known = False
            raise
        if answer[0] == 0:
            self._is_known = False
            raise Refused(
                "Redis heard nothing of this worker for too long, and took it for dead", passing=True
            )
        self._heard = asked
        del self._acks[: len(acks)], self._returns[: len(returns)]
        self._unwanted = self._unwanted[len(unwanted) :]
        if dead := answer[5]:
            warn_of_rescued(dead)
        return answer

    def _order_tiers(self) -> list[str]:
        """Put the queues that aren't paused in order, one list for each priority; returns their names."""
        paused = self._paused
        if self._tiers_without is not paused:
            tiers: dict[int, list[str]] = {}
            for name in self._queues:
                if name not in paused:
                    tiers.setdefault(priority_of(name), []).append(name)
            self._tiers = [tiers[priority] for priority in sorted(tiers)]
            names = [name for tier in self._tiers for name in tier]
            self._unwanted = [name for name in {*self._unwanted, *self._names} if name not in names]
            self._names, self._tiers_without = names, paused
        return self._names

    def wake(self) -> None:
        self._alarm.set()
        self._bell.ring()

    def pause(self, queues: frozenset[str]) -> None:
        self._paused = queues
        self._bell.ring()

    # -- being a worker among others -----------------------------------------------------------------------

    def _enter(self, until: float) -> None:
        """Become known as a worker, again on each new connection."""
        if self._is_known and self._link.is_up:
            return
        self._link.connect(until)
        self._connections += 1
        known: list[str] = []
        for delivery in (*self._held.values(), *self._acks, *self._returns):
            known += (delivery.token, delivery.queue)
        asked = time.monotonic()
        lost = self._link.run("enter", (self._worker, self._connections, self._queues, known), until=until)
        self._heard = asked
        self._is_known = True
        if lost:
            self._forget({token.decode() for token in lost})
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="redis-keeper", daemon=True)
            self._keeper.start()

    def _forget(self, lost: set[str]) -> None:
        """Others have these messages by now, or have done with them."""
        claims = [token for token in lost if self._held.pop(token, None) is not None]
        if claims:
            log.error("claims_lost", reason="this worker was frozen or cut off", claims=len(claims))
        for gathered in (self._acks, self._returns):
            for delivery in [one for one in gathered if one.token in lost]:
                gathered.remove(delivery)  # in place: other threads may be adding to it

    def _keep(self) -> None:
        """The keeper's life."""
        interval = self._lease / _BEATS
        next_beat = time.monotonic() + interval
        while not self._closed:
            self._given.wait(max(0.0, next_beat - time.monotonic()))
            if self._given.is_set():
                time.sleep(_ACK_DELAY)
                self._given.clear()
                self._armed = False
            beats = time.monotonic() >= next_beat
            if beats:
                next_beat = time.monotonic() + interval
            try:
                with self._applying:
                    self._apply(beats=beats)
            except BrokerUnavailable as error:
                self._failed(error)
                time.sleep(min(interval, self._link.pause()))
                self._arm()
            except Exception:  # a worker without a keeper would be taken for dead
                log.exception("the keeper failed, it goes on")
                time.sleep(interval)

    def _apply(self, *, beats: bool = False) -> None:
        """Let go of what was given; the caller has the link."""
        while not self._closed and (beats or self._acks or self._returns or self._stops_waiting):
            until = time.monotonic() + _ANSWER
            self._enter(until)
            waits, self._stops_waiting = _WAIT_NO_MORE if self._stops_waiting else _AS_BEFORE, False
            self._call(0, waits, until=until, looks=beats)
            self._recovered()
            beats = False

    # -- letting go ----------------------------------------------------------------------------------------

    def holds(self, delivery: Delivery) -> bool:
        token = delivery.token
        if self._held.get(token) is not delivery:
            return False
        if time.monotonic() - self._heard < self._lease or token in self._moving:
            return True
        return self._holds_for_certain(delivery)

    def _holds_for_certain(self, delivery: Delivery) -> bool:
        """Redis may have taken us for dead, so ask. If it doesn't answer, the message goes back, if it is ours."""
        if self._applying.acquire(timeout=_DOUBT):
            try:
                until = time.monotonic() + _DOUBT
                self._enter(until)
                self._call(0, _AS_BEFORE, until=until)
            except BrokerUnavailable as error:
                self._failed(error)
            finally:
                self._applying.release()
        if self._held.get(delivery.token) is not delivery:
            return False
        if time.monotonic() - self._heard < self._lease:
            return True
        if self._let_go(delivery, self._returns):
            self._arm()
        return False

    def ack(self, delivery: Delivery) -> None:
        if self._let_go(delivery, self._acks):
            if not self._armed:
                self._arm()
            if self._full:
                self._bell.ring()

    def _let_go(self, delivery: Delivery, gathered: list[Delivery]) -> bool:
        """From what is held to the acks or the returns; False if it isn't held."""
        if self._held.get(delivery.token) is not delivery:
            return False
        gathered.append(delivery)  # first, so that whoever looks what we know of finds it
        self._held.pop(delivery.token, None)
        if self._moving:
            self._moving.discard(delivery.token)
        return True

    def _arm(self) -> None:
        """See to it that acks are applied soon, even if nobody fetches."""
        self._armed = True
        self._given.set()

    def move(self, delivery: Delivery, outgoing: Outgoing) -> None:
        token = delivery.token
        if self._held.get(token) is not delivery:
            raise PutError("the claim is gone", not_queued=[outgoing])
        self._moving.add(token)
        done = self._driver.publisher.exchange(outgoing, self._worker, token, MOVE_DEADLINE)
        self._moving.discard(token)
        self._held.pop(token, None)
        if not done:
            raise PutError("the claim is gone", not_queued=[outgoing])
        if self._full:
            self._bell.ring()

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._let_go(delivery, self._returns)
        try:
            with self._applying:
                self._apply()
        except BrokerUnavailable as error:
            self._failed(error)
            self._arm()

    def close(self) -> None:
        with self._applying:
            if self._closed:
                return
            self._closed = True
        self._driver.forget(self)
        self.wake()
        self._given.set()
        if self._fetching.acquire(timeout=2 * _ANSWER):  # the bell is in use until `fetch` returns
            self._fetching.release()
        if self._keeper is not None:
            self._keeper.join(2 * _ANSWER)
        with self._applying:
            self._leave()

    def _leave(self) -> None:
        self._held.clear()
        try:
            if self._connections:
                acks = [delivery.token for delivery in self._acks]
                self._link.run("leave", (self._worker, acks), until=time.monotonic() + _ANSWER)
        except BrokerUnavailable as error:  # others will rescue what we held
            self._outage.begin(str(error))
        finally:
            self._link.close()
            self._bell.close()

    # -- outages -------------------------------------------------------------------------------------------

    def _next_try(self) -> float:
        return self._link.pause()

    def _interrupted(self) -> None:
        self._stops_waiting = True
        self._arm()


def warn_of_rescued(dead: Sequence[Any]) -> None:
    """Log who was found dead: a name, how many messages it held, another name, ..."""
    log.warning("workers_rescued", workers=[name.decode() for name in dead[::2]], messages=sum(dead[1::2]))
