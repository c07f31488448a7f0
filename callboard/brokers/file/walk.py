"""A walk over a queue: page by page, each page's verdicts in one transaction."""

# ruff: noqa: S608 - what is put into SQL is numbers of our own, so that statements are prepared once
from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from callboard.brokers.driver import Decide, Outgoing, StoredMessage, Verdict, WalkReport
from callboard.brokers.file import messages
from callboard.brokers.file.locks import LockedFile
from callboard.brokers.file.schema import NOBODY, explain, first_id, last_id
from callboard.errors import BrokerUnavailable

if TYPE_CHECKING:
    from callboard.brokers.file.driver import FileDriver, Numbers

_PAGE = 200
_TRANSACTION = 10.0  # seconds within which a page gets its turn


def walk(
    driver: FileDriver, queue: str, decide: Decide, progress: Callable[[int, int], None] | None
) -> WalkReport:
    """See `Driver.walk`."""
    number = driver.run(
        {queue},
        lambda connection, numbers: numbers[queue],
        durable=False,
        until=time.monotonic() + _TRANSACTION,
    )
    folder = driver.folder / "walks"
    try:
        folder.mkdir(exist_ok=True)
        lock = LockedFile(folder / f"{number}.lock")
    except OSError as error:
        raise BrokerUnavailable(explain(error, folder)) from error
    with closing(lock):
        lock.wait()
        return _Walk(driver, queue, number, decide, progress).run()


class _Walk:
    def __init__(
        self,
        driver: FileDriver,
        queue: str,
        number: int,
        decide: Decide,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._driver = driver
        self._queue = queue
        self._number = number
        self._decide = decide
        self._progress = progress
        self._report = WalkReport()

    def run(self) -> WalkReport:
        last, total = self._driver.read(self._extent)
        start = first_id(self._number)
        while last is not None and (page := self._driver.read(partial(self._read_page, start, last))):
            self._walk_page(page)
            start = page[-1][0] + 1
            if self._progress is not None:
                self._progress(self._report.seen, max(total, self._report.seen))
        return self._report

    def _extent(self, connection: sqlite3.Connection) -> tuple[int | None, int]:
        """The id of the last message, and how many there are."""
        row: tuple[int | None, int] = connection.execute(
            f"SELECT max(id), count(*) FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY}",
            (first_id(self._number), last_id(self._number)),
        ).fetchone()
        return row

    @staticmethod
    def _read_page(start: int, last: int, connection: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
        return connection.execute(
            f"SELECT id, headers, body FROM messages WHERE id BETWEEN ? AND ? AND claim = {NOBODY}"
            " ORDER BY id LIMIT ?",
            (start, last, _PAGE),
        ).fetchall()

    def _walk_page(self, page: list[tuple[int, bytes, bytes]]) -> None:
        verdicts: list[tuple[int, Outgoing | Verdict]] = []
        try:
            for id_, headers, body in page:
                verdict = self._decide(StoredMessage(self._queue, body, headers))
                self._report.seen += 1
                if verdict is Verdict.KEEP:
                    self._report.kept += 1
                else:
                    verdicts.append((id_, verdict))
        finally:
            if verdicts:
                self._carry_out(verdicts)

    def _carry_out(self, verdicts: list[tuple[int, Outgoing | Verdict]]) -> None:
        outgoing = [verdict for _, verdict in verdicts if isinstance(verdict, Outgoing)]

        def work(connection: sqlite3.Connection, numbers: Numbers) -> list[Outgoing | Verdict]:
            # What a worker has claimed or another has purged since the page was read is left alone.
            done = [verdict for id_, verdict in verdicts if messages.let_go_of_one(connection, NOBODY, id_)]
            messages.put(connection, numbers, [one for one in done if isinstance(one, Outgoing)], time.time())
            return done

        done = self._driver.run(
            {one.queue for one in outgoing}, work, durable=True, until=time.monotonic() + _TRANSACTION
        )
        moved = [one for one in done if isinstance(one, Outgoing)]
        self._report.moved += len(moved)
        self._report.discarded += len(done) - len(moved)
        self._report.kept += len(verdicts) - len(done)
        self._driver.ring_for(moved)
