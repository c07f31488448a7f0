"""All records that fit, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from callboard.store.base import Query, Record, Store

#: How many records are read or written at once.
BATCH = 500


def records_of(store: Store, query: Query) -> Iterator[Record]:
    """Every record that fits. Sets the query's limit and where it begins.

    Raises:
        StoreUnavailable
    """
    query.limit, query.after = BATCH, None
    while True:
        page = store.search(query)
        yield from page.records
        if page.next is None:
            return
        query.after = page.next
