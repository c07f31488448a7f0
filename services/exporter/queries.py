"""Named queries: `content/queries/NAME.sql`, one SELECT under a head of comments.

    -- title: Orders by country
    -- parameters: since
    -- sort: country, total
    SELECT ... WHERE placed_on >= :since

Whoever asks for an export names a query and gives values; no part of the SQL comes from outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from callboard.errors import Permanent

_HEAD = re.compile(r"--\s*(title|parameters|sort)\s*:(.*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class UnknownQuery(Permanent):
    """No query has this name; the message suggests the nearest."""


class InvalidQuery(Permanent):
    """The head of a query's file is wrong; the message says where."""


class InvalidParameters(Permanent):
    """The values, or the sort column, aren't those that the query declares. Nothing was run."""


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT, the names of the values it needs, and the columns it may be sorted by."""

    name: str
    title: str
    parameters: tuple[str, ...]
    sortable: tuple[str, ...]
    sql: str

    def check(self, values: Mapping[str, object]) -> None:
        """Raises:
        InvalidParameters: a value is missing, not declared, or nothing that SQL knows.
        """
        faults = [f"'{name}' is missing" for name in self.parameters if name not in values]
        faults += [f"'{name}' is not one of them" for name in values if name not in self.parameters]
        faults += [
            f"'{name}' is a {type(value).__name__}, not a text, a number, true, false or null"
            for name, value in values.items()
            if not isinstance(value, str | int | float | None)
        ]
        if faults:
            declared = ", ".join(self.parameters) or "none"
            raise InvalidParameters(f"query '{self.name}' has the parameters {declared}: {'; '.join(faults)}")

    def sorted_by(self, column: str | None, *, descending: bool = False) -> str:
        """The SQL, ordered by `column` if one is given.

        Raises:
            InvalidParameters: the query doesn't allow this column.
        """
        if column is None:
            return self.sql
        if column not in self.sortable:
            allowed = ", ".join(self.sortable) or "nothing"
            raise InvalidParameters(f"query '{self.name}' can't be sorted by '{column}'; it allows {allowed}")
        # In brackets, not in quotes: SQLite reads an unknown name in quotes as a text, and sorts by nothing.
        direction = "DESC" if descending else "ASC"
        return f"SELECT * FROM (\n{self.sql}\n) ORDER BY [{column}] {direction}"  # noqa: S608 - all from the file


class Queries:
    """The named queries in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._root.glob("*.sql"))

    def load(self, name: str) -> Query:
        """The query `name`.

        Raises:
            UnknownQuery: there is no such file.
            InvalidQuery: its head is wrong.
        """
        if name not in (known := self.names()):
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
            raise UnknownQuery(f"there is no query '{name}' in {self._root}; {hint}")
        return parse_query(name, (self._root / f"{name}.sql").read_text(encoding="utf-8"))


def parse_query(name: str, text: str) -> Query:
    """Read a query's file. Raises `InvalidQuery`."""
    head: dict[str, str] = {}
    lines = text.splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("--")):
        if found := _HEAD.match(lines.pop(0)):
            if found[1] in head:
                raise InvalidQuery(f"query '{name}' declares '{found[1]}' twice")
            head[found[1]] = found[2].strip()
    sql = "\n".join(lines).strip().removesuffix(";").rstrip()
    if not sql:
        raise InvalidQuery(f"query '{name}' holds no SQL")
    return Query(
        name,
        head.get("title") or name.replace("_", " "),
        _names(name, head.get("parameters", "")),
        _names(name, head.get("sort", "")),
        sql,
    )


def _names(query: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",")) if text else ()
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidQuery(f"query '{query}' declares '{name}', which is no plain name")
    return names
