"""The jobs of the demo: a few hundred of four kinds, at all four priorities, and how each is proved.

A job counts as done when what it was to bring about is there: the mail arrived, the export has as many rows
as the database says, the picture can be opened and is small enough, the old files are gone and the new ones
are not.
"""

from __future__ import annotations

import csv
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callboard.demo.folder import DemoFolder
from callboard.demo.mail_sink import MailSink
from callboard.demo.samples import Airport
from callboard.queues import Priority

#: The recipient who is put off twice before a mail to them is taken.
STRANGER = "stranger@example.org"
#: The photograph that isn't there when its job runs.
LATE_PHOTOGRAPH = "photographs/late/city.png"

_MAILS, _EXPORTS, _CLEANINGS = 182, 60, 12
_WIDTHS = (240, 320, 480, 640, 960)
_FORMATS = ("webp", "avif", "jpeg")
# The pairs of airports in large countries take a second or two to find.
_NEIGHBOURHOODS = (("US", 0.1), ("BR", 0.5), ("US", 0.12), ("BR", 0.7))
_QUERIES = Path("content/queries")

Proof = Callable[[str], str]  # the job's id -> what is wrong, or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """A job to send.

    Attributes:
        actor: Its actor's name.
        payload: Its arguments.
        priority: Of the four.
        about: What it does, in a few words.
        proof: Says what is missing of what it should bring about; nothing is missing where the text is empty.
    """

    actor: str
    payload: Mapping[str, Any]
    priority: Priority
    about: str
    proof: Proof


@dataclass(frozen=True, slots=True)
class Programme:
    """What is sent, in this order.

    Attributes:
        jobs: All of it.
        put_off: The mail that fails twice, for its recipient is a stranger to the mail server.
        unlucky: The picture that dies, for its photograph is missing.
    """

    jobs: list[PlannedJob]
    put_off: PlannedJob
    unlucky: PlannedJob


def write_programme(
    folder: DemoFolder, airports: list[Airport], photographs: list[str], sink: MailSink
) -> Programme:
    """Plan the jobs. The same data give the same programme."""
    put_off = _mail(
        sink, STRANGER, Priority.HIGH, "welcome", name="Stranger", product="Callboard", url=_url("start")
    )
    unlucky = _picture(folder, LATE_PHOTOGRAPH, "webp", 480, Priority.CRITICAL)
    long = list(_neighbourhoods(folder))
    others = [
        *_mails(sink, airports),
        *_exports(folder, airports),
        *_pictures(folder, photographs),
        *_cleanings(folder),
    ]
    random.Random(7).shuffle(others)  # noqa: S311  a shuffled deck, no secret
    return Programme([put_off, unlucky, *long, *others], put_off, unlucky)


def _priority(number: int) -> Priority:
    """All four in turn."""
    return Priority(number % 4 + 1)


# -- mails ---------------------------------------------------------------------------------------------------


def _mails(sink: MailSink, airports: list[Airport]) -> Iterator[PlannedJob]:
    named = [airport for airport in airports if airport.name and airport.city]
    for number, airport in enumerate(named[:: len(named) // _MAILS][:_MAILS]):
        to = f"tower-{airport.icao.lower()}@example.org"
        yield _mail(sink, to, _priority(number), *_letter(number, airport))


def _letter(number: int, airport: Airport) -> tuple[str, dict[str, Any]]:
    """A template in turn, and what it wants."""
    if number % 3 == 0:
        return "welcome", {"name": f"{airport.name} tower", "product": "Callboard", "url": _url(airport.icao)}
    if number % 3 == 1:
        return "report-ready", {
            "name": f"{airport.name} tower",
            "title": f"Movements at {airport.name}",
            "rows": 100 + number,
            "url": _url(airport.icao),
        }
    fee, landings = 180.5, 1 + number % 7
    line = {
        "text": f"Landing in {airport.city}",
        "quantity": landings,
        "price": fee,
        "amount": fee * landings,
    }
    return "invoice", {
        "number": f"{airport.icao}-{number:04}",
        "seller": airport.name,
        "customer": "Callboard Air",
        "currency": "EUR",
        "due": "31 December",
        "total": fee * landings,
        "lines": [line],
    }


def _mail(
    sink: MailSink,
    to: str,
    priority: Priority,
    template: str,
    context: Mapping[str, Any] | None = None,
    **more: Any,
) -> PlannedJob:
    def proof(job_id: str) -> str:
        return "" if sink.arrivals(job_id) else f"no mail came to {to}"

    payload: dict[str, Any] = {"to": [to], "template": template, "context": {**(context or {}), **more}}
    return PlannedJob(
        actor="send-email", payload=payload, priority=priority, about=f"mail to {to}", proof=proof
    )


def _url(page: str) -> str:
    return f"https://callboard.example/{page.lower()}"


# -- exports -------------------------------------------------------------------------------------------------


def _exports(folder: DemoFolder, airports: list[Airport]) -> Iterator[PlannedJob]:
    countries = Counter(airport.country for airport in airports).most_common(_EXPORTS)
    for number, (country, _) in enumerate(countries):
        sort = "name" if number % 2 else "elevation"
        yield _export(folder, "airports", {"country": country}, _priority(number), sort=sort)


def _neighbourhoods(folder: DemoFolder) -> Iterator[PlannedJob]:
    for number, (country, degrees) in enumerate(_NEIGHBOURHOODS):
        parameters = {"country": country, "degrees": degrees}
        yield _export(folder, "airport_neighbours", parameters, _priority(number))


def _export(
    folder: DemoFolder, query: str, parameters: Mapping[str, Any], priority: Priority, **options: str
) -> PlannedJob:
    name = "-".join([query, *map(str, parameters.values())])
    destination = f"exports/{name}.csv"

    def proof(_: str) -> str:
        path = folder.storage / destination
        if not path.exists():
            return f"there is no {path}"
        with path.open(encoding="utf-8", newline="") as lines:
            found = sum(1 for _ in csv.reader(lines)) - 1
        wanted = _count_rows(folder.database, query, parameters)
        return "" if found == wanted else f"{path} has {found:,} rows, and the database {wanted:,}"

    payload = {"query": query, "destination": destination, "parameters": dict(parameters), **options}
    about = f"export of {query}, {', '.join(map(str, parameters.values()))}"
    return PlannedJob(actor="export-csv", payload=payload, priority=priority, about=about, proof=proof)


def _count_rows(database: Path, query: str, parameters: Mapping[str, Any]) -> int:
    sql = (_QUERIES / f"{query}.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(database)) as connection:
        count: int = connection.execute(
            f"SELECT COUNT(*) FROM (\n{sql}\n)",  # noqa: S608  a query of ours
            parameters,
        ).fetchone()[0]
    return count


# -- pictures ------------------------------------------------------------------------------------------------


def _pictures(folder: DemoFolder, photographs: list[str]) -> Iterator[PlannedJob]:
    from PIL import features

    formats = [name for name in _FORMATS if name == "jpeg" or features.check(name)]
    number = 0
    for photograph in photographs:
        for format_ in formats:
            for width in _WIDTHS:
                yield _picture(folder, f"photographs/{photograph}", format_, width, _priority(number))
                number += 1


def _picture(folder: DemoFolder, source: str, format_: str, width: int, priority: Priority) -> PlannedJob:
    name = source.removeprefix("photographs/").rpartition(".")[0].replace("/", "-")
    destination = f"pictures/{name}-{width}.{format_}"

    def proof(_: str) -> str:
        from PIL import Image

        path = folder.storage / destination
        if not path.exists():
            return f"there is no {path}"
        try:
            with Image.open(path) as image:
                image.load()
                fits = image.format == format_.upper() and max(image.size) <= width
        except OSError as error:
            return f"{path} can't be opened: {error}"
        return "" if fits else f"{path} isn't what was asked for"

    return PlannedJob(
        actor="compress-image",
        payload={
            "source": source,
            "destination": destination,
            "format": format_,
            "max_width": width,
            "max_height": width,
        },
        priority=priority,
        about=f"{source.rpartition('/')[2]} as {format_}, {width} pixels",
        proof=proof,
    )


# -- cleaning ------------------------------------------------------------------------------------------------


def _cleanings(folder: DemoFolder) -> Iterator[PlannedJob]:
    """Folders of drafts, each with files of the day before yesterday and of today."""
    before = time.time() - 48 * 3600
    for number in range(_CLEANINGS):
        prefix = f"generated/drafts-{number + 1:02}/"
        drafts = folder.storage / prefix
        drafts.mkdir(parents=True)
        for name in ("old-1.csv", "old-2.csv", "old-3.csv", "new.csv"):
            (drafts / name).write_text("draft\n")
            if name.startswith("old"):
                os.utime(drafts / name, (before, before))
        yield _cleaning(drafts, prefix, _priority(number))


def _cleaning(drafts: Path, prefix: str, priority: Priority) -> PlannedJob:
    def proof(_: str) -> str:
        left = sorted(path.name for path in drafts.iterdir() if not path.name.startswith("."))
        return "" if left == ["new.csv"] else f"{drafts} holds {', '.join(left) or 'nothing'}"

    return PlannedJob(
        actor="clean-generated-files",
        payload={"prefix": prefix},
        priority=priority,
        about=f"cleaning of {prefix}",
        proof=proof,
    )
