"""The driver itself: what is asked of it, handed to the rooms beside it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from callboard.brokers.driver import (
    Decide,
    Driver,
    Intake,
    IntakeOptions,
    Location,
    Outgoing,
    PutError,
    QueueCounts,
    StoredMessage,
    WalkReport,
)
from callboard.brokers.file import messages, overview
from callboard.brokers.file.bells import Ringer
from callboard.brokers.file.intake import LONGEST_SLEEP, FileIntake
from callboard.brokers.file.schema import MAX_QUEUES, explain
from callboard.brokers.file.walk import walk
from callboard.brokers.file.watch import DeathWatch
from callboard.brokers.file.writer import MaybeWritten, Replaced, Writer
from callboard.errors import BrokerUnavailable
from callboard.loggers import get_logger

T = TypeVar("T")
Numbers = dict[str, int]

log = get_logger(__name__)

_PATIENCE = 10.0  # seconds within which a question or an act of the command line gets its turn
_PURGED_AT_ONCE = 10_000  # messages, so that senders get their turn between


class FileDriver(Driver):
    """Keeps messages in one SQLite file in a folder.

    Args:
        folder: Where the file lies; made on first use. It must be on a local disk.
        namespace: Puts everything into a folder of this name below, for a second app beside the first.
    """

    name = "file"
    claims_are_leases = True

    def __init__(self, folder: Path, *, namespace: str = "") -> None:
        self.folder = Path(folder).absolute() / namespace  # a job may change the current folder
        self.workers_folder = self.folder / "workers"
        self.writer = Writer(self.folder)
        self._known: tuple[Numbers, int] = ({}, 0)  # numbers, and the generation of the file they are from
        self._declared: set[str] = set()
        self._ringer = Ringer(self.workers_folder)
        self._intakes: set[FileIntake] = set()
        self.watch = DeathWatch(self)

    def declare(self, queue: str) -> None:
        self._declared.add(queue)

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        if not messages:
            return
        try:
            self.put_if(None, messages, until=time.monotonic() + deadline)
        except MaybeWritten as error:
            raise PutError(str(error), unknown=messages) from error
        except BrokerUnavailable as error:
            raise PutError(str(error), not_queued=messages) from error

    def put_if(
        self,
        condition: Callable[[sqlite3.Connection], bool] | None,
        outgoing: Sequence[Outgoing],
        *,
        until: float,
    ) -> bool:
        """Put messages if, in the same transaction, a condition holds. Returns whether it did.

        Raises:
            NotWritten, MaybeWritten
        """

        def work(connection: sqlite3.Connection, numbers: Numbers) -> bool:
            if condition is not None and not condition(connection):
                return False
            messages.put(connection, numbers, outgoing, time.time())
            return True

        done = self.run({one.queue for one in outgoing}, work, durable=True, until=until)
        if done:
            self.ring_for(outgoing)
        return done

    def run(
        self,
        queues: AbstractSet[str],
        work: Callable[[sqlite3.Connection, Numbers], T],
        *,
        durable: bool,
        until: float,
    ) -> T:
        """Do some work in a transaction, given the numbers of some queues; see `Writer.run`."""
        while True:
            numbers, generation = self._number(queues, until)
            try:
                return self.writer.run(
                    lambda connection: work(connection, numbers),  # noqa: B023 - it is called in this turn
                    durable=durable,
                    until=until,
                    generation=generation,
                )
            except Replaced:
                continue

    def _number(self, queues: AbstractSet[str], until: float) -> tuple[Numbers, int]:
        """The numbers of some queues, and the generation of the file in which they have them."""
        known = self._known
        if known[1] == self.writer.generation and known[0].keys() >= queues:
            return known
        numbers, generation = self.writer.run(
            lambda connection: (_make_queues(connection, queues), self.writer.generation),
            durable=False,
            until=until,
        )
        if self._known[1] == generation:  # another thread may have read more meanwhile
            numbers = {**self._known[0], **numbers}
        self._known = known = (numbers, generation)
        return known

    def ring(self, queues: Collection[int], count: int) -> None:
        """Wake workers that wait for these queues. What is put is safe already, so nothing here may fail."""
        try:
            self._ringer.ring(queues, count)
        except OSError as error:
            log.warning("workers_not_woken", error=str(error))

    def ring_for(self, outgoing: Sequence[Outgoing]) -> None:
        """Wake workers that wait for the queues of these messages."""
        try:
            if self._ringer.anybody_waits():
                self._ring_for(outgoing)
        except OSError as error:
            log.warning("workers_not_woken", error=str(error))

    def _ring_for(self, outgoing: Sequence[Outgoing]) -> None:
        # Whoever sleeps looks by himself before anything is due that is further away than his sleep.
        soon = time.time() + LONGEST_SLEEP + 0.1
        names = [one.queue for one in outgoing if one.due is None or one.due < soon]
        if names:
            numbers = self._known[0]
            # Another thread may have replaced what is known by what it read before: a sleeper looks by itself then.
            self._ringer.ring({numbers[name] for name in set(names) if name in numbers}, len(names))

    # --- claiming

    def open_intake(self, options: IntakeOptions) -> Intake:
        intake = FileIntake(self, options)
        self._intakes.add(intake)
        return intake

    @property
    def open_intakes(self) -> list[FileIntake]:
        return list(self._intakes)

    def forget(self, intake: FileIntake) -> None:
        """The intake closes."""
        self._intakes.discard(intake)

    # --- asking

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask something on a connection of its own, which holds up nobody.

        Raises:
            BrokerUnavailable
        """
        path = self.writer.path
        if not self.writer.generation or not path.exists():
            self.ping()  # makes the file
        try:
            with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as connection:
                connection.execute("BEGIN")
                return question(connection)
        except sqlite3.Error as error:
            raise BrokerUnavailable(explain(error, path)) from error

    def queues(self) -> list[str]:
        return sorted(self._declared | set(self.read(overview.queues)))

    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        return self.read(
            lambda connection: overview.counts(connection, self.workers_folder, queues, time.time())
        )

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        return self.read(lambda connection: overview.peek(connection, queue, limit))

    def locate(self, job_id: str) -> Location | None:
        return self.read(lambda connection: overview.locate(connection, job_id))

    def ping(self) -> None:
        self.writer.run(lambda connection: None, durable=True, until=_soon())

    # --- changing

    def purge(self, queue: str) -> int:
        gone = 0
        last = self.run(
            {queue},
            lambda connection, numbers: messages.last(connection, numbers[queue]),
            durable=False,
            until=_soon(),
        )
        while True:
            dropped = self.run(
                {queue},
                lambda connection, numbers: messages.purge(connection, numbers[queue], last, _PURGED_AT_ONCE),
                durable=True,
                until=_soon(),
            )
            if not dropped:
                return gone
            gone += dropped

    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        return walk(self, queue, decide, progress)

    def close(self) -> None:
        for intake in self.open_intakes:
            intake.close()
        self.writer.close()


def _make_queues(connection: sqlite3.Connection, queues: Iterable[str]) -> Numbers:
    """Make those that aren't there; returns the numbers of all."""
    connection.executemany("INSERT OR IGNORE INTO queues (name) VALUES (?)", [(name,) for name in queues])
    numbers: dict[str, int] = {
        name: number for number, name in connection.execute("SELECT id, name FROM queues")
    }
    if len(numbers) > MAX_QUEUES:
        raise BrokerUnavailable(f"there can't be more than {MAX_QUEUES} queues in one folder")
    return numbers


def _soon() -> float:
    return time.monotonic() + _PATIENCE
