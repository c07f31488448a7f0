"""Which messages a worker claims: by priority, then by age; of every eight the last by age alone."""

# ruff: noqa: S608 - what is put into SQL is numbers of our own, so that statements are prepared once
from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from callboard.brokers.file import messages
from callboard.brokers.file.schema import (
    LAST_PLACE,
    NOBODY,
    PLACE_BITS,
    first_id,
    last_id,
    microseconds,
    place_of,
    queue_of,
)
from callboard.queues import priority_of

Row = tuple[int, int, bytes, bytes]  # id, redelivered, headers, body


@dataclass(slots=True)
class Claims:
    """What a claim brought."""

    rows: list[Row] = field(default_factory=list)
    next_due: float | None = None  # of what isn't due yet; only if nothing was claimed


class Picker:
    """Chooses what a worker claims: by priority, then by age; of every eight the last by age alone."""

    def __init__(self, numbers: Mapping[str, int], turn: int = 0) -> None:
        """Choose from these queues, given with their numbers. `turn` says how many of eight are taken."""
        self._numbers = list(numbers.values())
        tiers: dict[int, list[int]] = {}
        for name, number in numbers.items():
            tiers.setdefault(priority_of(name), []).append(number)
        self._tiers = [tiers[priority] for priority in sorted(tiers)]
        self.turn = turn
        listed = ", ".join(map(str, self._numbers)) or "NULL"
        self._ready_sql = (
            f"SELECT (SELECT id FROM messages WHERE id BETWEEN (queues.id << {PLACE_BITS})"
            f" AND (queues.id << {PLACE_BITS} | {LAST_PLACE}) AND claim = {NOBODY} ORDER BY id LIMIT 1)"
            f" FROM queues WHERE id IN ({listed})"
        )
        self._due_sql = (
            f"SELECT id, (SELECT due FROM delayed WHERE queue = queues.id ORDER BY due LIMIT 1)"
            f" FROM queues WHERE id IN ({listed})"
        )

    def claim(self, connection: sqlite3.Connection, worker: int, limit: int, now: float) -> Claims:
        """Claim up to `limit` messages."""
        next_due = self._promote(connection, now)
        rows = self._pick(connection, limit) if limit > 0 else []
        if not rows:
            return Claims(next_due=next_due)
        messages.take(connection, worker, [row[0] for row in rows])
        return Claims(rows)

    def _promote(self, connection: sqlite3.Connection, now: float) -> float | None:
        """Move what is due to the ends of the queues; returns when the next is due."""
        moment = microseconds(now)
        next_due: int | None = None
        for queue, due in connection.execute(self._due_sql).fetchall():
            if due is None:
                continue
            if due <= moment:
                messages.promote(connection, queue, moment, now)
                due = moment  # there may be more
            if next_due is None or due < next_due:
                next_due = due
        return None if next_due is None else next_due / 1_000_000

    def _pick(self, connection: sqlite3.Connection, limit: int) -> list[Row]:
        heads = {queue_of(id_): id_ for (id_,) in connection.execute(self._ready_sql) if id_ is not None}
        waiting = lines = [
            _Line(connection, {queue: heads[queue] for queue in tier if queue in heads})
            for tier in self._tiers
            if not heads.keys().isdisjoint(tier)
        ]
        rows: list[Row] = []
        try:
            while waiting and len(rows) < limit:
                if len(waiting) == 1:
                    found = waiting[0].take_all(limit - len(rows))
                elif self.turn == 7:
                    found = min(waiting, key=_Line.oldest).take(1)
                else:
                    found = waiting[0].take(min(7 - self.turn, limit - len(rows)))
                rows += found
                self.turn = (self.turn + len(found)) % 8
                waiting = [line for line in waiting if line.waits]
        finally:
            for line in lines:
                line.close()  # an open cursor would hold on to this state of the file
        return rows


class _Line:
    """The messages of one priority, of all their queues, in the order of their age."""

    def __init__(self, connection: sqlite3.Connection, heads: dict[int, int]) -> None:
        """Line up behind the first message of each queue, whose ids are given."""
        self._connection = connection
        self._queues = list(heads)
        self._oldest = min(map(place_of, heads.values()))
        self._cursors: dict[int, sqlite3.Cursor] = {}
        self._heads: list[tuple[int, int, Row]] = []  # a heap by place
        self.waits = True

    def oldest(self) -> int:
        """The place of the first."""
        return self._heads[0][0] if self._heads else self._oldest

    def take(self, limit: int) -> list[Row]:
        """The next ones."""
        heads, cursors = self._heads, self._cursors
        if not cursors:
            self._open()
        rows: list[Row] = []
        while heads and len(rows) < limit:
            _, queue, row = heads[0]
            rows.append(row)
            following = cursors[queue].fetchone()
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following[0] & LAST_PLACE, queue, following))
        self.waits = bool(heads)
        return rows

    def take_all(self, limit: int) -> list[Row]:
        """The next ones, which are the last that are asked for."""
        if len(self._queues) > 1 or self._cursors:
            return self.take(limit)
        self.waits = False
        cursor = self._cursors[self._queues[0]] = self._select(self._queues[0])
        return cursor.fetchmany(limit)

    def _open(self) -> None:
        for queue in self._queues:
            cursor = self._cursors[queue] = self._select(queue)
            row = cursor.fetchone()
            self._heads.append((row[0] & LAST_PLACE, queue, row))
        heapq.heapify(self._heads)

    def _select(self, queue: int) -> sqlite3.Cursor:
        # The number is part of the text, so that each queue has a prepared statement of its own.
        return self._connection.execute(
            f"SELECT id, redelivered, headers, body FROM messages"
            f" WHERE id BETWEEN {first_id(queue)} AND {last_id(queue)} AND claim = {NOBODY} ORDER BY id"
        )

    def close(self) -> None:
        for cursor in self._cursors.values():
            cursor.close()
