"""The driver itself: what is asked of it, handed to the rooms beside it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import structlog

from callboard.brokers.driver import (
    Decide,
    Driver,
    Intake,
    IntakeOptions,
    Location,
    Outgoing,
    PutError,
    QueueCounts,
    WalkReport,
)
from callboard.brokers.file import messages, overview
from callboard.brokers.file.bells import Ringer
from callboard.brokers.file.intake import LONGEST_SLEEP, FileIntake
from callboard.brokers.file.schema import MAX_QUEUES, explain
from callboard.brokers.file.walk import walk
from callboard.brokers.file.writer import MaybeWritten, Writer
from callboard.errors import BrokerUnavailable

T = TypeVar("T")
Numbers = Mapping[str, int]

log = structlog.get_logger(__name__)

_PATIENCE = 10.0  # seconds within which a question or an act of the command line gets its turn
_PURGED_AT_ONCE = 10_000  # messages, so that senders get their turn between


class _Replaced(Exception):
    """The file is another than the one whose queue numbers we know."""


class FileDriver(Driver):
    """Keeps messages in one SQLite file in a folder.

    Args:
        folder: Where the file lies; made on first use. It must be on a local disk.
        namespace: Puts everything into a folder of this name below, for a second app beside the first.
    """

    name = "file"
    claims_are_leases = True

    def __init__(self, folder: Path, *, namespace: str = "") -> None:
        self.folder = Path(folder) / namespace
        self.workers_folder = self.folder / "workers"
        self.writer = Writer(self.folder)
        self.queue_names: dict[int, str] = {}
        self._queue_numbers: dict[str, int] = {}
        self._generation = 0  # of the file that the numbers are from
        self._declared: set[str] = set()
        self._ringer = Ringer(self.workers_folder)
        self._intakes: set[FileIntake] = set()
        self._mutex = threading.Lock()

    def declare(self, queue: str) -> None:
        self._declared.add(queue)

    def put(self, messages: Sequence[Outgoing], *, deadline: float) -> None:
        if not messages:
            return
        try:
            self.put_with(lambda connection: True, messages, timeout=deadline)
        except MaybeWritten as error:
            raise PutError(str(error), unknown=messages) from error
        except BrokerUnavailable as error:
            raise PutError(str(error), not_queued=messages) from error

    def put_with(
        self, before: Callable[[sqlite3.Connection], bool], outgoing: Sequence[Outgoing], *, timeout: float
    ) -> bool:
        """Put messages in one transaction with what is done `before`, and only if that returns True.

        Raises:
            NotWritten, MaybeWritten
        """

        def work(connection: sqlite3.Connection, numbers: Numbers) -> bool:
            allowed = before(connection)
            if allowed:
                messages.put(connection, numbers, outgoing, time.time())
            return allowed

        done = self.run({one.queue for one in outgoing}, work, durable=True, timeout=timeout)
        if done:
            self.ring_for(outgoing)
        return done

    def run(
        self,
        queues: Collection[str],
        work: Callable[[sqlite3.Connection, Numbers], T],
        *,
        durable: bool,
        timeout: float,
    ) -> T:
        """Do some work in a transaction, given the numbers of some queues; see `Writer.run`."""
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            numbers, generation = self._number(queues, left)

            def checked(
                connection: sqlite3.Connection, numbers: Numbers = numbers, generation: int = generation
            ) -> T:
                if self.writer.generation != generation:
                    raise _Replaced
                return work(connection, numbers)

            try:
                return self.writer.run(checked, durable=durable, timeout=left)
            except _Replaced:
                continue

    def _number(self, queues: Collection[str], timeout: float) -> tuple[Numbers, int]:
        """The numbers of some queues, and the generation of the file in which they have them."""
        with self._mutex:
            generation, known = self._generation, self._queue_numbers
        if generation != self.writer.generation or any(name not in known for name in queues):
            known, generation = self.writer.run(
                lambda connection: (_make_queues(connection, queues), self.writer.generation),
                durable=False,
                timeout=timeout,
            )
            with self._mutex:
                self._queue_numbers, self._generation = known, generation
                self.queue_names = {number: name for name, number in known.items()}
        return known, generation

    def ring(self, queues: Collection[int], count: int) -> None:
        """Wake workers that wait for these queues. What is put is safe already, so nothing here may fail."""
        try:
            self._ringer.ring(queues, count)
        except OSError as error:
            log.warning("workers_not_woken", error=str(error))

    def ring_for(self, outgoing: Sequence[Outgoing]) -> None:
        # Whoever sleeps looks by himself before anything is due that is further away than his sleep.
        soon = time.time() + LONGEST_SLEEP + 0.1
        names = [one.queue for one in outgoing if one.due is None or one.due < soon]
        if names:
            self.ring({self._queue_numbers[name] for name in set(names)}, len(names))

    # --- claiming

    def open_intake(self, options: IntakeOptions) -> Intake:
        intake = FileIntake(self, options)
        self._intakes.add(intake)
        return intake

    def forget(self, intake: FileIntake) -> None:
        """The intake closes."""
        self._intakes.discard(intake)

    # --- asking

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask something on a connection of its own, which holds up nobody.

        Raises:
            BrokerUnavailable
        """
        self.writer.run(lambda connection: None, durable=False, timeout=_PATIENCE)  # so that there is a file
        try:
            with closing(
                sqlite3.connect(self.writer.path, timeout=_PATIENCE, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN")
                return question(connection)
        except sqlite3.Error as error:
            raise BrokerUnavailable(explain(error, self.writer.path)) from error

    def queues(self) -> list[str]:
        return sorted(self._declared | set(self.read(overview.queues)))

    def counts(self, queues: Iterable[str]) -> dict[str, QueueCounts]:
        return self.read(lambda connection: overview.counts(connection, queues, time.time()))

    def locate(self, job_id: str) -> Location | None:
        return self.read(lambda connection: overview.locate(connection, job_id))

    def ping(self) -> None:
        self.writer.run(lambda connection: None, durable=True, timeout=_PATIENCE)

    # --- changing

    def purge(self, queue: str) -> int:
        now = time.time()
        gone = 0
        while True:
            dropped = self.run(
                [queue],
                lambda connection, numbers: messages.purge(connection, numbers[queue], now, _PURGED_AT_ONCE),
                durable=True,
                timeout=_PATIENCE,
            )
            if not dropped:
                return gone
            gone += dropped

    def walk(
        self, queue: str, decide: Decide, *, progress: Callable[[int, int], None] | None = None
    ) -> WalkReport:
        return walk(self, queue, decide, progress)

    def close(self) -> None:
        for intake in list(self._intakes):
            intake.close()
        self._ringer.close()
        self.writer.close()


def _make_queues(connection: sqlite3.Connection, queues: Iterable[str]) -> dict[str, int]:
    """Make those that aren't there; returns the numbers of all."""
    connection.executemany("INSERT OR IGNORE INTO queues (name) VALUES (?)", [(name,) for name in queues])
    numbers: dict[str, int] = {
        name: number for number, name in connection.execute("SELECT id, name FROM queues")
    }
    if len(numbers) > MAX_QUEUES:
        raise BrokerUnavailable(f"there can't be more than {MAX_QUEUES} queues in one folder")
    return numbers
