"""Which deliveries of one channel are unacked, and how to ack many with few frames.

AMQP acks one tag, or all up to a tag. Jobs end out of order, so a tag that is done may have to wait a moment
for those before it; whatever still has a gap before it after that moment is acked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable


class Unacked:
    """The delivery tags of one channel, from delivery to ack."""

    __slots__ = ("_done", "_tags")

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}  # in the order of delivery, which is that of the tags
        self._done: set[int] = set()

    def __len__(self) -> int:
        """How many the server counts against the prefetch."""
        return len(self._tags)

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags and tag not in self._done

    def delivered(self, tag: int) -> None:
        self._tags[tag] = None

    def done(self, tags: Iterable[int]) -> None:
        """These are to be acked. A tag that isn't unacked is ignored: acking it would close the channel."""
        self._done.update(tag for tag in tags if tag in self._tags)

    def returned(self, tag: int) -> bool:
        """This one is given back; whether it can be."""
        if tag not in self:
            return False
        del self._tags[tag]
        return True

    def acks(self, *, patient: bool) -> list[tuple[int, bool]]:
        """The acks to send now, as (tag, and all before it); a patient caller comes again for the rest."""
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
        if not patient:
            for tag in sorted(self._done):
                del self._tags[tag]
                found.append((tag, False))
            self._done.clear()
        return found

    @property
    def has_gaps(self) -> bool:
        """Whether a patient caller has left something."""
        return bool(self._done)
