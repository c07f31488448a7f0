"""Named queries, written to storage as CSV.

    exporter.export_csv("orders_by_country", {"since": "2026-05-01"}, "exports/may.csv", progress=print)

Rows go from the database to the storage in small batches, so memory stays flat. The file appears when it is
complete. Whoever wants to stop an export raises from `progress`; nothing appears then.
"""

from __future__ import annotations

import codecs
import csv
import io
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field

from callboard.errors import CallboardError, Permanent, SettingsError
from callboard.settings import CallboardSettings
from services import storage
from services.default import Default
from services.exporter.queries import InvalidParameters, InvalidQuery, Queries, Query, UnknownQuery

__all__ = [
    "DatabaseUnavailable",
    "ExportNotConfigured",
    "ExportReport",
    "ExportSettings",
    "Exporter",
    "InvalidParameters",
    "InvalidQuery",
    "Queries",
    "Query",
    "QueryFailed",
    "UnknownQuery",
    "default",
    "export_csv",
]

QUERIES = Path(__file__).parent.parent.parent / "content" / "queries"

# A spreadsheet takes a text that starts like this for a formula. The last four are the first four, full width.
_FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

_CHUNK = 64 * 1024  # letters that are gathered before they are written
_PROGRESS_ROWS = 10_000
_PROGRESS_SECONDS = 0.5
_INSTRUCTIONS_BETWEEN_LOOKS = 50_000  # about a millisecond of SQLite's work

# Errors of SQLite that no later attempt mends: the query is wrong, or wants to write.
_QUERY_ERRORS = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_RANGE,
    }
)


class ExportNotConfigured(SettingsError, Permanent):
    """No database to export from, or a URL that isn't one."""


class DatabaseUnavailable(CallboardError):
    """The database can't be opened or read just now; the message says which and why."""


class QueryFailed(Permanent):
    """The database refuses the query; the message is its answer."""


class ExportSettings(CallboardSettings):
    """What exports read, and how their files look."""

    export_database_url: str | None = Field(
        None,
        description="The database that exports read: sqlite:///RELATIVE/PATH or sqlite:////ABSOLUTE/PATH.",
    )
    export_bom: bool = Field(
        False, description="Start CSV files with a byte order mark, without which Excel misreads accents."
    )


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A finished export: its rows without the head, its size in bytes, and its storage key."""

    rows: int
    bytes: int
    key: str


class Exporter:
    """Runs the queries of one folder on one SQLite database, which it opens for reading only."""

    def __init__(
        self, *, database: Path | None, queries: Queries, storage: storage.Storage, bom: bool = False
    ) -> None:
        self._database = database
        self._queries = queries
        self._storage = storage
        self._bom = bom

    def export_csv(
        self,
        query: str,
        parameters: Mapping[str, object],
        destination: str,
        *,
        progress: Callable[[int], None] = lambda rows: None,
        sort: str | None = None,
        descending: bool = False,
    ) -> ExportReport:
        """Write the rows of the query named `query` to the storage key `destination`, under a line of names.

        UTF-8, commas, CRLF; null is empty, a blob hexadecimal. A text that a spreadsheet would take for a
        formula starts with an apostrophe instead; numbers stay numbers. `progress` is called with the rows
        so far: about every 10,000 rows, every half second while none come, and at the end, before the file appears.
        What it raises ends the export.

        Raises:
            UnknownQuery: there is no such query.
            InvalidParameters: a value is missing or not declared, or `sort` isn't allowed; nothing was opened.
            QueryFailed: the database refuses the query.
            ExportNotConfigured: there is no `CALLBOARD_EXPORT_DATABASE_URL`.
            DatabaseUnavailable: it can't be read just now.
        """
        found = self._queries.load(query)
        found.check(parameters)
        sql = found.sorted_by(sort, descending=descending)
        if self._database is None:
            raise ExportNotConfigured("no database: set CALLBOARD_EXPORT_DATABASE_URL to sqlite:///PATH")
        count = _Count(progress)
        with (
            self._explaining(found),
            closing(self._open()) as connection,
            count.stopping(connection),
            self._storage.open_write(destination) as out,
        ):
            cursor = connection.execute(sql, dict(parameters))
            if cursor.description is None:
                raise sqlite3.ProgrammingError("it returns no columns; an export is one SELECT")
            count.bytes += out.write(_first_line(cursor.description, bom=self._bom))
            sheet = _Sheet(out, count)
            csv.writer(sheet).writerows(map(_safe, cursor))
            sheet.flush()
            count.report()
        return ExportReport(count.rows, count.bytes, destination)

    def _open(self) -> sqlite3.Connection:
        assert self._database
        connection = sqlite3.connect(f"{self._database.absolute().as_uri()}?mode=ro", uri=True)
        connection.execute("PRAGMA query_only = ON")
        connection.set_authorizer(_refuse_attach)
        return connection

    @contextmanager
    def _explaining(self, query: Query) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _QUERY_ERRORS:
                raise QueryFailed(f"query '{query.name}' failed: {error}") from error
            raise DatabaseUnavailable(f"can't read {self._database} for '{query.name}': {error}") from error


class _Count:
    """How far an export is, and the way to stop it.

    While the database works on its first row, no Python code of ours runs, so SQLite calls us back every
    millisecond: that moment serves `progress`, and lets an exception that another thread has thrown into this
    one (a time limit, a cancellation) come through.
    """

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.rows = 0
        self.bytes = 0
        self._progress = progress
        self._reported = time.monotonic()
        self._next_rows = _PROGRESS_ROWS
        self._raised: BaseException | None = None

    def add(self, rows: int) -> None:
        self.rows += rows
        if self.rows >= self._next_rows:
            self.report()

    def report(self) -> None:
        self._next_rows = self.rows + _PROGRESS_ROWS
        self._reported = time.monotonic()
        self._progress(self.rows)

    @contextmanager
    def stopping(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Inside, what is raised during the database's work interrupts it, and comes out of the block."""
        looks = self._looks()
        next(looks)
        connection.set_progress_handler(partial(next, looks, 1), _INSTRUCTIONS_BETWEEN_LOOKS)
        try:
            yield
        except sqlite3.OperationalError:
            if self._raised is None:
                raise
            raise self._raised from None
        finally:
            looks.close()

    def _looks(self) -> Generator[int, None, None]:
        """Yields 0 to go on and 1 to interrupt.

        A generator, not a function: SQLite swallows what a callback raises, and an exception from another
        thread is raised at a function's very first instruction, before any `try` in it. A generator resumes
        inside its `try`.
        """
        try:
            while True:
                yield 0
                if time.monotonic() - self._reported > _PROGRESS_SECONDS:
                    self.report()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by `stopping`
            self._raised = error
            yield 1


class _Sheet:
    """What the csv module writes its lines to: gathers them, and hands them on in chunks.

    Line by line, so that the memory in use is a chunk and one row, however large rows are.
    """

    def __init__(self, out: storage.Writer, count: _Count) -> None:
        self._out, self._count = out, count
        self._lines: list[str] = []
        self._size = 0

    def write(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        self._count.bytes += self._out.write("".join(self._lines).encode())
        self._count.add(len(self._lines))
        self._lines.clear()
        self._size = 0


def _first_line(description: Iterable[Sequence[str | None]], *, bom: bool) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(_safe(column[0] for column in description))
    return (codecs.BOM_UTF8 if bom else b"") + text.getvalue().encode()


def _refuse_attach(action: int, *_: str | None) -> int:
    """Even a read-only connection makes a file when it attaches one that doesn't exist."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def _safe(row: Iterable[object]) -> list[object]:
    """The cells as a spreadsheet should see them. One expression, since it runs for every cell of every row."""
    return [
        (f"'{cell}" if cell[:1] in _FORMULA_STARTS else cell)
        if type(cell) is str
        else (cell.hex() if type(cell) is bytes else cell)
        for cell in row
    ]


def _database_at(url: str) -> Path:
    scheme, found, path = url.partition(":///")
    if scheme != "sqlite" or not found or not path:
        raise ExportNotConfigured(f"CALLBOARD_EXPORT_DATABASE_URL must look like sqlite:///PATH, not '{url}'")
    return Path(path)


def _build() -> Exporter:
    settings = ExportSettings.load()
    url = settings.export_database_url
    return Exporter(
        database=_database_at(url) if url else None,
        queries=Queries(QUERIES),
        storage=storage.default(),
        bom=settings.export_bom,
    )


default: Default[Exporter] = Default(_build, needs=[storage.default])


def export_csv(
    query: str,
    parameters: Mapping[str, object],
    destination: str,
    *,
    progress: Callable[[int], None] = lambda rows: None,
    sort: str | None = None,
    descending: bool = False,
) -> ExportReport:
    """Export from the database of `CALLBOARD_EXPORT_DATABASE_URL`; see `Exporter.export_csv`."""
    return default().export_csv(
        query, parameters, destination, progress=progress, sort=sort, descending=descending
    )
