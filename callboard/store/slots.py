"""When a job may start under a rate limit: the generic cell rate algorithm, with slots that are reserved.

Three moments a key. `line` is where the next slot of those who come for the first time begins: it runs ahead of the
clock by as much as waits. Who comes back at the time of its slot passes the gate, `ran`: the moment from which one more
start keeps the rate, by those that really took place. So after an hour without workers, when thousands of slots have
gone by, they don't all start at once: those who find the gate closed stand in a second line, `late`, and so are spread
over the time that they need.

Redis does the same in `redis/lua/reserve.lua`.
"""

from __future__ import annotations

import msgspec

#: Who comes back is rarely on time to the millisecond: so many seconds too early, or one slot, are let pass.
TOLERANCE = 0.25
KEPT = 60.0


class Slots(msgspec.Struct):
    """What is known of a key. Times are seconds since the epoch."""

    line: float = 0.0
    late: float = 0.0
    ran: float = 0.0

    def reserve(self, now: float, *, every: float, burst: int, came_back: bool) -> float:
        """Seconds until the job may start; 0.0 means now.

        Parameters:
            every: Seconds between two starts.
            burst: How many may start at once after a lull.
            came_back: It was given a slot before, and the time of that has come.
        """
        lull = (burst - 1) * every
        if not came_back:
            slot = self.line - lull
            self.line = max(self.line, now) + every
            if slot > now:
                return slot - now
        if self.ran - lull <= now + min(every, TOLERANCE):
            self.ran = max(self.ran, now) + every
            return 0.0
        slot = max(self.late, self.ran - lull, now)
        self.late = slot + every
        return slot - now

    def ttl(self, now: float) -> float:
        """Seconds for which this matters, and a little more."""
        return max(self.line, self.late, self.ran) - now + KEPT
