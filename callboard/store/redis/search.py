"""Reading records: many by search, how many.

A search is a merge of sorted sets, newest first, that is read as far as the page needs: of the kinds and states that
fit, or of a fingerprint, or of a tag. Redis only finds the places and hands over the records, a few hundred a
call, so that nobody else waits long for his turn; what else is asked of a record is looked at here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from callboard.states import State
from callboard.store.base import Page
from callboard.store.pages import LOOKED_AT, check, is_exact, no_cursor, read_cursor, write_cursor
from callboard.store.redis.records import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from callboard.store.base import Query, Record

    Run = Callable[[str, object], Any]

_CHUNK = 250

Place = tuple[float, str]  # when a job was new, and its id: what pages go by


def search_records(run: Run, query: Query) -> Page:
    """A page of records, without stories.

    Args:
        run: Runs a script, given its name and its order.
        query: What is asked.
    """
    check(query)
    place: Place | None = _start(query)
    found: list[tuple[Place, Record]] = []
    looked = 0
    while place is not None and looked < LOOKED_AT and len(found) <= query.limit:
        wanted = query.limit + 1 - len(found) if is_exact(query) else _CHUNK
        records, place = _read(run, query, place, wanted)
        looked += wanted
        found += [(there, record) for there, record in records if _fits(record, query)]
    if len(found) > query.limit:
        del found[query.limit :]
        place = found[-1][0]
    following = write_cursor(place[0], place[1].encode()) if place is not None else None
    return Page(records=[record for _, record in found], next=following)


def _start(query: Query) -> Place:
    born, job_id = math.inf, ""
    if query.after is not None:
        born, rest = read_cursor(query.after)
        try:
            job_id = rest.decode()
        except UnicodeDecodeError:
            raise no_cursor(query.after) from None
        if math.isnan(born):
            raise no_cursor(query.after)
    if query.until is not None and query.until <= born:
        return query.until, ""
    return born, job_id


def _read(
    run: Run, query: Query, place: Place, wanted: int
) -> tuple[list[tuple[Place, Record]], Place | None]:
    """The records at the next places, and the last of these, or None if there are no more."""
    oldest = -math.inf if query.since is None else query.since
    found, values = run("search", [_one(query), filters(query), *place, oldest, wanted])
    places = [(float(born), job_id.decode()) for job_id, born in zip(found[::2], found[1::2], strict=True)]
    records = [
        (there, unpack(there[1], value, story=False)) for there, value in zip(places, values, strict=True)
    ]
    return records, places[-1] if len(places) == wanted else None


def _one(query: Query) -> str | bool:
    """The one sorted set that has all that fits, if there is one."""
    if query.fingerprint is not None:
        return f"error:{query.fingerprint}"
    return f"tag:{query.tags[0]}" if query.tags else False


def filters(query: Query) -> list[Any]:
    """The filters on actor, category, queue and state."""
    asked: Sequence[Sequence[str]] = (query.actors, query.categories, query.queues, query.states)
    return [dict.fromkeys(map(str, wanted), 1) or False for wanted in asked]


def _fits(record: Record, query: Query) -> bool:
    if is_exact(query):
        return True
    return (
        (not query.states or record.state in query.states)
        and (not query.categories or record.category in query.categories)
        and (not query.actors or record.actor in query.actors)
        and (not query.queues or record.queue in query.queues)
        and set(query.tags) <= set(record.tags)
        and (query.fingerprint is None or record.fingerprint == query.fingerprint)
        and (query.text is None or _has_text(record, query.text))
    )


def _has_text(record: Record, text: str) -> bool:
    # Of bytes, only ASCII letters have a lower case.
    sought = text.encode("utf-8", "replace").lower()
    return any(sought in said.encode().lower() for said in (record.payload, record.error, record.reason))


def count_by_state(run: Run, category: str | None) -> dict[State, int]:
    """How many records there are in each state."""
    counts: dict[State, int] = {}
    found = run("count", [])
    for name, count in zip(found[::2], found[1::2], strict=True):
        _, its_category, _, state = name.decode().split("\n")
        if category is None or its_category == category:
            counts[State(state)] = counts.get(State(state), 0) + count
    return counts
