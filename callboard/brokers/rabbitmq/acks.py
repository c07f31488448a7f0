"""Which deliveries of one channel are unacked, and how to ack many with few frames.

AMQP acks one tag, or all up to a tag. Jobs end out of order, so a tag that is done waits one round for those
before it; what still has a gap before it then is acked by itself.
"""

from __future__ import annotations


class Unacked:
    """The delivery tags of one channel, from delivery to ack."""

    __slots__ = ("_done", "_tags", "_waited")

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}  # in the order of delivery, which is that of the tags
        self._done: set[int] = set()
        self._waited: set[int] = set()  # done, and left over by the last round

    def __len__(self) -> int:
        """How many the server counts against the prefetch."""
        return len(self._tags)

    def count_from(self, first: int) -> int:
        """How many there are from a tag on."""
        return sum(tag >= first for tag in self._tags)

    def delivered(self, tag: int) -> None:
        self._tags[tag] = None

    def done(self, tag: int) -> None:
        """This one is to be acked; ignored if it isn't unacked: to ack it would close the channel."""
        if tag in self._tags:
            self._done.add(tag)

    def returned(self, tag: int) -> bool:
        """This one is given back; whether it can be."""
        if tag not in self._tags or tag in self._done:
            return False
        del self._tags[tag]
        return True

    def acks(self, *, last: bool = False) -> list[tuple[int, bool]]:
        """The acks of one round, as (tag, and all before it); the last round leaves nothing over."""
        found: list[tuple[int, bool]] = []
        if not self._done:
            return found
        first: list[int] = []
        for tag in self._tags:
            if tag not in self._done:
                break
            first.append(tag)
        if first:
            for tag in first:
                del self._tags[tag]
            self._done.difference_update(first)
            found.append((first[-1], len(first) > 1))
        for tag in sorted(self._done if last else self._done & self._waited):
            del self._tags[tag]
            self._done.discard(tag)
            found.append((tag, False))
        self._waited = set(self._done)
        return found

    @property
    def has_more(self) -> bool:
        """Whether the last round has left something over."""
        return bool(self._done)
