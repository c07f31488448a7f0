"""What holds for the pages of a search, in every store."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import TYPE_CHECKING

from callboard.errors import InvalidQuery

if TYPE_CHECKING:
    from callboard.store.base import Query

LARGEST_PAGE = 1000
LONGEST_TEXT = 1000
LOOKED_AT = 20_000  # records that a page looks at, at most


def check(query: Query) -> None:
    """Refuse what is out of range.

    Raises:
        InvalidQuery: Saying what.
    """
    if not 1 <= query.limit <= LARGEST_PAGE:
        raise InvalidQuery(f"a page has 1 to {LARGEST_PAGE:,} records, not {query.limit}")
    if query.text is not None and len(query.text) > LONGEST_TEXT:
        raise InvalidQuery(
            f"a text to search for has up to {LONGEST_TEXT:,} characters, not {len(query.text):,}"
        )


def is_exact(query: Query) -> bool:
    """Whether all that is asked is where a record lies, so that not every record has to be looked at."""
    return query.text is None and query.fingerprint is None and not query.tags


def write_cursor(born: float, rest: bytes) -> str:
    """A place among the pages: when a job was new, and what tells it from others of that moment."""
    return base64.urlsafe_b64encode(struct.pack(">d", born) + rest).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, bytes]:
    """The place of `write_cursor`.

    Raises:
        InvalidQuery: It is none.
    """
    try:
        place = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        (born,) = struct.unpack_from(">d", place)
    except (ValueError, binascii.Error, struct.error):
        raise no_cursor(cursor) from None
    return born, place[8:]


def no_cursor(cursor: str) -> InvalidQuery:
    """What to raise for a text that isn't a place."""
    return InvalidQuery(f"{cursor!r} is not the `next` of a page")
