"""Exports hold what the query returned, run nothing but named queries, and appear whole or not at all."""

from __future__ import annotations

import csv
import ctypes
import io
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from callboard.errors import Permanent, SettingsError
from services import exporter, storage
from services.exporter import (
    DatabaseUnavailable,
    Exporter,
    ExportNotConfigured,
    InvalidParameters,
    InvalidQuery,
    Queries,
    QueryFailed,
    UnknownQuery,
)
from services.exporter.queries import parse_query
from services.storage import InvalidKey, LocalStorage

ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000000) "
    "SELECT COUNT(*) FROM n"
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop's data #1?.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, email TEXT, country TEXT, joined_on TEXT);
        CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, total REAL, placed_on TEXT);
        INSERT INTO customers VALUES
            (1, 'Ada', 'ada@example.org', 'GB', '2026-01-02'),
            (2, 'J\u00f6rg "the" B, jr', 'j@example.org', 'DE', '2026-02-03'),
            (3, 'Zo\u00eb', 'z@example.org', 'DE', '2026-01-01');
        INSERT INTO orders (customer_id, total, placed_on) VALUES
            (1, 10.5, '2026-03-01'), (2, 20, '2026-03-02'), (3, 2.25, '2026-03-03'), (3, 99, '2025-01-01');
        """
    )
    connection.close()
    return path


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    folder = tmp_path / "queries"
    folder.mkdir()
    for name, text in {
        "all_customers": "-- title: All customers\n-- sort: name, joined_on\nSELECT name, country FROM customers;",
        "by_name": "-- parameters: name\nSELECT id FROM customers WHERE name = :name",
        "undeclared": "SELECT id FROM customers WHERE name = :name",
        "numbers": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000) SELECT i FROM n",
        "endless": ENDLESS,
        "deletes": "DELETE FROM customers RETURNING id",
        "creates": "CREATE TABLE evil (id)",
        "attaches": "ATTACH DATABASE 'evil.sqlite' AS evil",
        "two": "SELECT 1; DELETE FROM customers",
        "unknown_table": "SELECT 1 FROM nothing",
        "wrong_sort": "-- sort: total\nSELECT name FROM customers",
        "cells": "SELECT * FROM cells",
    }.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


@pytest.fixture
def export(database: Path, queries: Path, files: LocalStorage) -> Exporter:
    return Exporter(database=database, queries=Queries(queries), storage=files)


def rows(files: LocalStorage, key: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(files.read(key).decode(), newline="")))


def test_the_rows_of_a_query_arrive_under_their_names(export: Exporter, files: LocalStorage) -> None:
    report = export.export_csv("all_customers", {}, "exports/all.csv")

    assert rows(files, "exports/all.csv") == [
        ["name", "country"],
        ["Ada", "GB"],
        ['J\u00f6rg "the" B, jr', "DE"],
        ["Zo\u00eb", "DE"],
    ]
    assert report.rows == 3
    assert report.key == "exports/all.csv"
    assert report.bytes == files.stat("exports/all.csv").size


@pytest.mark.parametrize("value", ["Ada", "x' OR 1=1 --", "'; DROP TABLE customers; --"])
def test_values_are_bound_and_never_read_as_sql(
    export: Exporter, files: LocalStorage, database: Path, value: str
) -> None:
    report = export.export_csv("by_name", {"name": value}, "a.csv")

    assert report.rows == (1 if value == "Ada" else 0)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT COUNT(*) FROM customers").fetchone() == (3,)
    connection.close()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "'name' is missing"),
        ({"name": "Ada", "limit": 1}, "'limit' is not one of them"),
        ({"nmae": "Ada"}, "'name' is missing; 'nmae' is not one of them"),
        ({"name": ["Ada"]}, "'name' is a list"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_opened(
    queries: Path, files: LocalStorage, values: dict[str, object], words: str
) -> None:
    closed = Exporter(database=Path("/no/such/database"), queries=Queries(queries), storage=files)

    with pytest.raises(InvalidParameters, match=words) as raised:
        closed.export_csv("by_name", values, "a.csv")
    assert isinstance(raised.value, Permanent)


def test_an_unknown_query_suggests_the_nearest(export: Exporter) -> None:
    with pytest.raises(UnknownQuery, match="did you mean 'all_customers'"):
        export.export_csv("all_custmers", {}, "a.csv")


@pytest.mark.parametrize("name", ["../queries/by_name", "", "by_name.sql", "/etc/passwd", "*"])
def test_a_querys_name_is_no_path(export: Exporter, name: str) -> None:
    with pytest.raises(UnknownQuery):
        export.export_csv(name, {"name": "Ada"}, "a.csv")


def test_a_sort_column_comes_from_the_list_and_sorts_both_ways(export: Exporter, files: LocalStorage) -> None:
    export.export_csv("all_customers", {}, "up.csv", sort="name")
    export.export_csv("all_customers", {}, "down.csv", sort="name", descending=True)

    up = [row[0] for row in rows(files, "up.csv")[1:]]
    assert up == ["Ada", 'J\u00f6rg "the" B, jr', "Zo\u00eb"]
    assert [row[0] for row in rows(files, "down.csv")[1:]] == up[::-1]


@pytest.mark.parametrize("column", ["country", "name; DROP TABLE customers", "name DESC", "1", ""])
def test_any_other_sort_column_is_refused(export: Exporter, column: str) -> None:
    with pytest.raises(InvalidParameters, match="it allows name, joined_on"):
        export.export_csv("all_customers", {}, "a.csv", sort=column)


@pytest.mark.parametrize(
    "query", ["deletes", "creates", "attaches", "two", "unknown_table", "wrong_sort", "undeclared"]
)
def test_a_query_that_writes_or_fails_is_a_permanent_error_and_leaves_nothing(
    export: Exporter, files: LocalStorage, database: Path, query: str
) -> None:
    with pytest.raises(QueryFailed, match=f"query '{query}' failed"):
        export.export_csv(query, {}, "a.csv", sort="total" if query == "wrong_sort" else None)

    assert list(files.list()) == []
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT COUNT(*) FROM customers").fetchone() == (3,)
    assert connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'evil'").fetchone() == (0,)
    connection.close()
    assert not Path("evil.sqlite").exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_text_that_looks_like_a_formula_is_made_safe(
    export: Exporter, files: LocalStorage, database: Path, start: str
) -> None:
    evil = f"{start}cmd|' /C calc'!A0"
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE cells (a TEXT)")
    connection.execute("INSERT INTO cells VALUES (?)", (evil,))
    connection.commit()
    connection.close()

    export.export_csv("cells", {}, "a.csv")

    assert rows(files, "a.csv") == [["a"], [f"'{evil}"]]


def test_a_column_whose_name_looks_like_a_formula_is_made_safe(
    export: Exporter, files: LocalStorage, database: Path
) -> None:
    connection = sqlite3.connect(database)
    connection.execute('CREATE TABLE cells ("=1+1" TEXT)')
    connection.close()

    export.export_csv("cells", {}, "a.csv")

    assert rows(files, "a.csv") == [["'=1+1"]]


def test_numbers_stay_numbers_and_other_values_have_one_clear_form(
    export: Exporter, files: LocalStorage, database: Path
) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE cells (a INTEGER, b REAL, c TEXT, d TEXT, e BLOB, f TEXT)")
    values = (-5, -1.5e-7, "-5", None, b"\x00\xff", 'a,"b"\r\nc')
    connection.execute("INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()

    export.export_csv("cells", {}, "a.csv")

    assert rows(files, "a.csv")[1] == ["-5", "-1.5e-07", "'-5", "", "00ff", 'a,"b"\r\nc']
    assert files.read("a.csv").startswith(b"a,b,c,d,e,f\r\n-5,")


def test_a_byte_order_mark_is_written_on_request(database: Path, queries: Path, files: LocalStorage) -> None:
    Exporter(database=database, queries=Queries(queries), storage=files, bom=True).export_csv(
        "all_customers", {}, "a.csv"
    )

    assert files.read("a.csv").startswith(b"\xef\xbb\xbfname,country\r\n")


def test_progress_counts_the_rows_up_to_the_last(export: Exporter, files: LocalStorage) -> None:
    seen: list[int] = []

    def progress(count: int) -> None:
        assert not files.exists("a.csv")
        seen.append(count)

    report = export.export_csv("numbers", {}, "a.csv", progress=progress)

    assert report.rows == 25_000 == seen[-1]
    assert seen[0] < 25_000 and seen == sorted(seen)
    assert [int(row[0]) for row in rows(files, "a.csv")[1:]] == list(range(1, 25_001))


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("older", [None, b"older"])
def test_what_progress_raises_ends_the_export_and_nothing_appears(
    export: Exporter, files: LocalStorage, older: bytes | None
) -> None:
    if older:
        files.put("a.csv", older)

    def progress(count: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        export.export_csv("numbers", {}, "a.csv", progress=progress)

    assert files.exists("a.csv") is bool(older)
    assert not older or files.read("a.csv") == older
    assert files.sweep() == 0


def test_a_query_that_has_no_row_yet_can_be_stopped_too(export: Exporter, files: LocalStorage) -> None:
    def progress(count: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        export.export_csv("endless", {}, "a.csv", progress=progress)

    assert list(files.list()) == []


def test_an_exception_from_another_thread_stops_a_query_that_has_no_row_yet(
    export: Exporter, files: LocalStorage
) -> None:
    running = threading.Event()
    ended: list[type[BaseException]] = []

    def run() -> None:
        try:
            export.export_csv("endless", {}, "a.csv", progress=lambda count: running.set())
        except BaseException as error:
            ended.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    assert thread.ident
    throw(thread.ident, Cancelled)
    thread.join(30)

    assert ended == [Cancelled]
    assert list(files.list()) == []


def throw(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def test_a_database_that_isnt_there_is_named_and_not_made(
    queries: Path, files: LocalStorage, tmp_path: Path
) -> None:
    missing = Exporter(database=tmp_path / "missing.sqlite", queries=Queries(queries), storage=files)

    with pytest.raises(DatabaseUnavailable, match=r"missing\.sqlite.*unable to open") as raised:
        missing.export_csv("all_customers", {}, "a.csv")
    assert not isinstance(raised.value, Permanent)
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_file_that_is_no_database_is_named(queries: Path, files: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to look like one" * 100)

    with pytest.raises(DatabaseUnavailable, match=r"text.*not a database"):
        Exporter(database=tmp_path / "text", queries=Queries(queries), storage=files).export_csv(
            "all_customers", {}, "a.csv"
        )


def test_a_destination_outside_the_storage_is_refused(export: Exporter, tmp_path: Path) -> None:
    with pytest.raises(InvalidKey):
        export.export_csv("all_customers", {}, "../evil.csv")
    assert not (tmp_path / "evil.csv").exists()


FLAT = """
import re, sys
from pathlib import Path
from services.exporter import Exporter, Queries
from services.storage import LocalStorage
folder = Path(sys.argv[1])
export = Exporter(database=folder / "db", queries=Queries(folder / "queries"), storage=LocalStorage(folder / "files"))
export.export_csv("wide", {}, "small.csv")
def peak_kb():  # not ru_maxrss, which a child inherits from the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak_kb()
report = export.export_csv("wide_many", {}, "big.csv")
print(report.bytes, peak_kb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_stays_flat_however_large_the_rows_are(queries: Path, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "db").close()
    (queries / "wide.sql").write_text("SELECT hex(zeroblob(500000)) AS a")
    (queries / "wide_many.sql").write_text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 64) "
        "SELECT i, hex(zeroblob(500000)) AS a FROM n"
    )

    done = subprocess.run(
        [sys.executable, "-c", FLAT, str(tmp_path)], capture_output=True, text=True, check=True
    )

    size, growth_kb = map(int, done.stdout.split())
    assert size > 64_000_000
    assert growth_kb < 40_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-- title: x\n", "holds no SQL"),
        ("-- parameters: a b\nSELECT 1", "'a b', which is no plain name"),
        ("-- sort: a, \nSELECT 1", "'', which is no plain name"),
        ("-- sort: a\n-- sort: b\nSELECT 1", "declares 'sort' twice"),
    ],
)
def test_a_wrong_head_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidQuery, match=words):
        parse_query("x", text)


def test_a_head_may_hold_other_comments_and_nothing_is_required() -> None:
    query = parse_query("open_orders", "-- Why this exists: ask Ada.\n\n--parameters:a,b\nSELECT 1 -- x\n;\n")

    assert (query.title, query.parameters, query.sortable) == ("open orders", ("a", "b"), ())
    assert query.sql == "SELECT 1 -- x"


@pytest.mark.parametrize("query", Queries(exporter.QUERIES).names())
def test_every_query_that_ships_is_well_formed(query: str) -> None:
    loaded = Queries(exporter.QUERIES).load(query)

    assert loaded.title and f":{loaded.parameters[0]}" in loaded.sql if loaded.parameters else loaded.title


def test_the_shipped_examples_run_on_the_tables_they_are_written_for(
    database: Path, files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_EXPORT_DATABASE_URL", f"sqlite:///{database}")
    with storage.default.replaced_by(files):
        exporter.export_csv(
            "orders_by_country", {"since": "2026-01-01"}, "o.csv", sort="total", descending=True
        )
        exporter.export_csv("customers", {"country": "DE"}, "c.csv", sort="name")

    assert rows(files, "o.csv") == [["country", "orders", "total"], ["DE", "2", "22.25"], ["GB", "1", "10.5"]]
    assert [row[1] for row in rows(files, "c.csv")[1:]] == ['J\u00f6rg "the" B, jr', "Zo\u00eb"]


def test_without_a_database_an_export_says_which_variable_to_set(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALLBOARD_EXPORT_DATABASE_URL", raising=False)
    with storage.default.replaced_by(files), pytest.raises(ExportNotConfigured, match="EXPORT_DATABASE_URL"):
        exporter.export_csv("customers", {"country": "DE"}, "c.csv")


@pytest.mark.parametrize("url", ["shop.sqlite", "sqlite:shop.sqlite", "sqlite:///", "postgresql:///shop"])
def test_a_database_url_of_another_kind_is_refused(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("CALLBOARD_EXPORT_DATABASE_URL", url)
    with storage.default.replaced_by(files), pytest.raises(SettingsError, match="sqlite:///PATH"):
        exporter.export_csv("customers", {"country": "DE"}, "c.csv")
