"""A worker's hand on the file: claims, acks, and the wait for something to do."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from callboard import forks
from callboard.brokers.asking import AskingIntake
from callboard.brokers.driver import Delivery, IntakeOptions, Outgoing, PutError
from callboard.brokers.file import messages, workers
from callboard.brokers.file.bells import Bell
from callboard.brokers.file.picker import Claims, Picker
from callboard.brokers.file.schema import PLACE_BITS, explain, queue_of
from callboard.brokers.file.workers import Registration
from callboard.brokers.file.writer import MaybeWritten, Replaced
from callboard.errors import BrokerUnavailable
from callboard.loggers import get_logger

if TYPE_CHECKING:
    from callboard.brokers.file.driver import FileDriver, Numbers

T = TypeVar("T")

log = get_logger(__name__)

LONGEST_SLEEP = 1.0  # seconds after which a waiting worker looks by itself
_ACK_DELAY = 0.004  # seconds that an ack waits for a fetch to take it along
_TRANSACTION = 5.0  # seconds within which a claim or an ack gets its turn
_CLOSE = 2 * _TRANSACTION  # seconds that a close waits for what goes on
MOVE_DEADLINE = 10.0  # the same for a move


class FileIntake(AskingIntake):
    """Claims messages for one worker, under a number and a lock of its own."""

    away = (BrokerUnavailable, OSError)

    def __init__(self, driver: FileDriver, options: IntakeOptions) -> None:
        self._driver = driver
        self._writer = driver.writer
        self._watch = driver.watch
        self._options = options
        self._paused = options.paused
        self._reset()
        forks.follow(self)

    def _reset(self) -> None:
        super()._reset()
        self._held: dict[int, Delivery] = {}
        self._acks: list[int] = []
        self._returns: list[int] = []
        self._flusher: threading.Thread | None = None
        self._registration: Registration | None = None
        self._generation = 0
        self._bell: Bell | None = None
        self._picker: Picker | None = None
        self._picked_without: frozenset[str] = frozenset()
        self._numbers: Numbers = {}
        self._names: dict[int, str] = {}

    # --- claiming

    def _attempt(self, limit: int, end: float) -> list[Delivery]:
        """Claim; if there is nothing, listen until there is."""
        bell = self._enter()
        self._watch.look()
        found, _ = self._claim(limit)
        try:
            while not found and not self._is_over(end) and self._generation == self._writer.generation:
                bell.listen(waits=not self._full)
                found, next_due = self._claim(limit)  # what was put before we listened
                if not found and not self._is_over(end):
                    self._sleep(bell, end, next_due)
        finally:
            bell.stop_listening()
        return found

    def _sleep(self, bell: Bell, end: float, next_due: float | None) -> None:
        """Until somebody rings, something is due, or it is time to look again in any case."""
        now = time.monotonic()
        until = min(end, now + LONGEST_SLEEP)
        if next_due is not None:
            until = min(until, now + next_due - time.time())
        while not bell.wait(min(until, self._watch.next) - time.monotonic()):
            if time.monotonic() >= until:
                break
            self._watch.look()
        else:
            return
        if next_due is None:
            self._writer.shrink(until=time.monotonic() + _TRANSACTION)

    def _claim(self, limit: int) -> tuple[list[Delivery], float | None]:
        """Apply the acks and claim what there is room for, in one transaction."""
        with self._applying:
            registration = self._registration
            if self._closed or registration is None:
                return [], None
            picker = self._choose_picker()
            room = min(limit, self._options.budget - len(self._held))
            self._full = room <= 0
            if self._full and not self._acks and not self._returns:
                return [], None
            acks, returns = list(self._acks), list(self._returns)
            number = registration.number

            def work(connection: sqlite3.Connection) -> Claims:
                if acks:
                    messages.let_go(connection, number, acks)
                if returns:
                    messages.give_back(connection, number, returns)
                return picker.claim(connection, number, room, time.time())

            try:
                claims = self._run(work)
            except Replaced:  # so register first
                return [], None
            del self._acks[: len(acks)], self._returns[: len(returns)]
            names = self._names
            found = [
                Delivery(names[id_ >> PLACE_BITS], body, headers, id_, redelivered == 1)
                for id_, redelivered, headers, body in claims.rows
            ]
            self._held.update((delivery.token, delivery) for delivery in found)
        return found, claims.next_due

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Change claims, in the file in which we are registered."""
        return self._writer.run(
            work, durable=False, until=time.monotonic() + _TRANSACTION, generation=self._generation
        )

    def wake(self) -> None:
        self._alarm.set()
        self._ring_own_bell()

    def _ring_own_bell(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.ring()

    def pause(self, queues: frozenset[str]) -> None:
        self._paused = queues
        self._ring_own_bell()

    def _choose_picker(self) -> Picker:
        """The picker for the queues that aren't paused now."""
        paused = self._paused
        if self._picker is None or self._picked_without is not paused:
            numbers = {name: self._numbers[name] for name in self._options.queues if name not in paused}
            self._picker = Picker(numbers, turn=self._picker.turn if self._picker is not None else 0)
            self._picked_without = paused
            if self._bell is not None:
                self._bell.want(numbers.values())
        return self._picker

    # --- being a worker among others

    def _enter(self) -> Bell:
        """Become known as a worker, again if the file has been replaced."""
        if self._bell is None or self._generation != self._writer.generation:
            with self._applying:
                self._register()
        assert self._bell is not None
        return self._bell

    def _register(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the intake is closed")
        self._lose_claims()
        options, folder = self._options, self._driver.workers_folder

        def work(connection: sqlite3.Connection, numbers: Numbers) -> tuple[Registration, Numbers, int]:
            made = workers.register(connection, folder, options.worker, options.queues)
            return made, numbers, self._writer.generation

        if self._bell is not None:
            self._bell.forked()  # its name may be another's by now
            self._bell = None
        self._registration, self._numbers, self._generation = self._driver.run(
            set(options.queues), work, durable=False, until=time.monotonic() + _TRANSACTION
        )
        self._names = {number: name for name, number in self._numbers.items()}
        self._bell = Bell(folder, self._registration.number)
        self._picker = None
        self._watch.call_the_roll()

    def _lose_claims(self) -> None:
        """They are in another file, or another's: whatever comes of them concerns nobody any more."""
        self._held.clear()
        self._acks.clear()
        self._returns.clear()

    def still_registered(self, numbers: set[int]) -> int | None:
        """Our number, of those that have a lock file. If somebody has deleted ours, it is made anew, unless
        others took us for dead already."""
        own = self._registration
        if own is None or own.number in numbers:
            return own.number if own is not None else None
        folder = self._driver.workers_folder
        with self._applying:
            if self._closed:
                return None
            self._registration = renewed = self._writer.run(
                lambda connection: workers.renew(connection, folder, own),
                durable=False,
                until=time.monotonic() + _TRANSACTION,
            )
            if renewed is None:
                log.error("claims_lost", reason=f"files in {folder} were deleted", claims=len(self._held))
                self._lose_claims()
                self._generation = 0  # register anew
        return own.number

    # --- letting go

    def holds(self, delivery: Delivery) -> bool:
        return self._held.get(delivery.token) is delivery

    def ack(self, delivery: Delivery) -> None:
        if self._drop(delivery):
            self._acks.append(delivery.token)
            if not self._armed:
                self._arm()
            if self._full:
                self._ring_own_bell()

    def _drop(self, delivery: Delivery) -> bool:
        """No more ours; False if it wasn't."""
        held = self._held.get(delivery.token)
        return held is delivery and self._held.pop(delivery.token, None) is not None

    def _arm(self) -> None:
        """See to it that acks are applied soon, even if nobody fetches."""
        self._armed = True
        self._given.set()
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_for_ever, name="file-acks", daemon=True)
            self._flusher.start()

    def _flush_for_ever(self) -> None:
        while not self._closed:
            self._given.wait()
            time.sleep(_ACK_DELAY)
            self._given.clear()
            self._armed = False
            try:
                with self._applying:
                    self._apply()
            except self.away as error:
                self._failed(error)
                time.sleep(LONGEST_SLEEP)
                self._arm()

    def _apply(self) -> None:
        registration = self._registration
        if registration is None or not (self._acks or self._returns):
            return
        acks, returns, number = list(self._acks), list(self._returns), registration.number

        def work(connection: sqlite3.Connection) -> None:
            messages.let_go(connection, number, acks)
            messages.give_back(connection, number, returns)

        try:
            self._run(work)
        except Replaced:
            self._lose_claims()
            return
        del self._acks[: len(acks)], self._returns[: len(returns)]
        if returns:
            self._driver.ring({queue_of(id_) for id_ in returns}, len(returns))

    def move(self, delivery: Delivery, outgoing: Outgoing) -> None:
        registration = self._registration
        if registration is None or not self.holds(delivery):
            raise PutError("the claim is gone", not_queued=[outgoing])
        number, id_ = registration.number, delivery.token
        try:
            done = self._driver.put_if(
                lambda connection: messages.let_go_of_one(connection, number, id_),
                [outgoing],
                until=time.monotonic() + MOVE_DEADLINE,
            )
        except MaybeWritten as error:
            raise PutError(str(error), unknown=[outgoing]) from error
        except BrokerUnavailable as error:
            raise PutError(str(error), not_queued=[outgoing]) from error
        self._held.pop(id_, None)
        if not done:
            raise PutError("the claim is gone", not_queued=[outgoing])
        if self._full:
            self._ring_own_bell()

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        self._returns += [delivery.token for delivery in deliveries if self._drop(delivery)]
        try:
            with self._applying:
                self._apply()
        except self.away as error:
            self._failed(error)
            self._arm()

    def close(self) -> None:
        with self._applying:
            if self._closed:
                return
            self._closed = True
        self._driver.forget(self)
        self._alarm.set()
        self._ring_own_bell()
        self._given.set()
        if self._fetching.acquire(timeout=_CLOSE):  # the bell is in use until `fetch` returns
            self._fetching.release()
        if self._flusher is not None:
            self._flusher.join(_CLOSE)
        with self._applying:
            if self._registration is not None:
                self._leave(self._registration)

    def _leave(self, registration: Registration) -> None:
        acks, returns = list(self._acks), [*self._returns, *self._held]
        folder, bell, number = self._driver.workers_folder, self._bell, registration.number

        def work(connection: sqlite3.Connection) -> None:
            messages.let_go(connection, number, acks)
            messages.give_back(connection, number, returns)
            workers.leave(connection, folder, registration)

        self._held.clear()
        self._bell = None
        try:
            if bell is not None:
                bell.close()
            self._run(work)
            self._lose_claims()
        except self.away as error:
            self._failed(error)  # others will find the lock free, and rescue what we held
        registration.lock.close()
        if returns:
            self._driver.ring({queue_of(id_) for id_ in returns}, len(returns))

    # --- outages

    def _next_try(self) -> float:
        return LONGEST_SLEEP

    def _explain(self, error: Exception) -> str:
        return explain(error, self._writer.path)
