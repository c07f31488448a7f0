"""The connections of one process to the store's Redis: any thread takes one for a call, and gives it back.

While Redis can't be reached, calls fail at once but for one in a while, so that nobody waits for the same answer
again and again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from callboard import forks
from callboard.errors import StoreUnavailable
from callboard.redis.link import Link
from callboard.redis.outage import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_IDLE = 4  # connections that wait for the next call
_OLD = 30.0  # seconds after which a firewall may have forgotten one


class Links:
    """Connections, opened when they are needed.

    Args:
        make: Makes one, not opened yet.
        name: Whose they are, for errors.
        patience: Seconds that a call may take.
    """

    def __init__(self, make: Callable[[], Link], *, name: str, patience: float) -> None:
        self._make = make
        self._name = name
        self._patience = patience
        self._closed = False
        self.forked()
        forks.follow(self)

    def forked(self) -> None:
        """We are in a child: the connections are the parent's, and close themselves."""
        self._lock = threading.Lock()
        self._idle: list[tuple[Link, float]] = []  # and since when
        self._away = ""  # why nothing is asked just now
        self._away_until = 0.0

    def call(self, question: Callable[[Link, float], T], *, twice: bool = True) -> T:
        """Ask something.

        Args:
            question: Takes a connection, and by when it has to be done.
            twice: Whether it can be asked again without harm, when it isn't known what became of it.

        Raises:
            StoreUnavailable: With one sentence that says what to do.
        """
        self._refuse_if_away()
        until = time.monotonic() + self._patience
        link = self._take()
        stood = link.is_up
        try:
            try:
                answer = question(link, until)
            except Unreachable:
                if not (stood and twice):
                    raise
                answer = question(link, until)
        except Unreachable as error:
            self._note_away(str(error), link.pause())
            raise StoreUnavailable(f"{self._name} can't be reached: {error}") from error
        except Refused as error:
            self._away = ""  # it answers
            raise StoreUnavailable(f"{self._name} can't be used: {error}") from error
        finally:
            self._give(link)
        self._away = ""
        return answer

    def close(self) -> None:
        """Close them for good."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link, _ in idle:
            link.close()

    def _refuse_if_away(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self._name} is closed")
        if not self._away:
            return
        with self._lock:
            if self._away and time.monotonic() < self._away_until:
                raise StoreUnavailable(f"{self._name} can't be reached: {self._away}")
            self._away_until = time.monotonic() + self._patience  # this call finds out for all

    def _note_away(self, why: str, pause: float) -> None:
        with self._lock:
            self._away, self._away_until = why, time.monotonic() + pause

    def _take(self) -> Link:
        with self._lock:
            link, since = self._idle.pop() if self._idle else (self._make(), 0.0)
        connection = link.connection
        if connection is not None and (time.monotonic() - since > _OLD or _has_ended(connection)):
            link.close()
        return link

    def _give(self, link: Link) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE:
                self._idle.append((link, time.monotonic()))
                return
        link.close()


def _has_ended(connection: object) -> bool:
    """Whether something has come that nobody asked for: the end of the connection."""
    try:
        return bool(connection.can_read(0))  # type: ignore[attr-defined]  # redis-py's
    except Exception:  # noqa: BLE001  whatever it is, another connection is better
        return True
