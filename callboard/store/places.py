"""Who of a key's jobs may run at once: the holders of its places, and when the others are to look again.

Nobody stands in a list, and nobody is woken: a job that finds no place free is given a moment at which to look again,
reserved by how long jobs have held their places of late. Two lines of such moments, each of which runs ahead of the
clock: `line` of those who come for the first time, and `late` of those who looked when told, and found nothing free
again. While either runs ahead, nobody who comes for the first time takes a place, so that none overtakes. However long
a job holds its place, no moment lies further ahead than a look for each 0.1 s and job that waits: estimates are mended
in time, and very many cost no more looks than a few.

A place is held until it is given back, or its time to live is over: then its holder has died. Redis does the same in
`redis/lua/place.lua`.
"""

from __future__ import annotations

import msgspec

KEPT = 3600.0
_BRISK = 0.8  # to look a little too early leaves no place idle
_SHORTEST = 0.001  # seconds between two looks
_LOOKS = 10.0  # a second
_SOON = 0.05, 15.0
_WEIGHT = 0.2


class Holder(msgspec.Struct, array_like=True):
    """Since when a job has had its place, and until when it keeps it unless it says more."""

    since: float
    until: float


class Places(msgspec.Struct):
    """What is known of a key. Times are seconds since the epoch."""

    holders: dict[str, Holder] = {}
    mean: float = 0.1  # seconds that a place was held of late
    line: float = 0.0
    late: float = 0.0
    waiting: int = 0

    def enter(
        self, now: float, job_id: str, *, places: int, ttl: float, came_back: bool
    ) -> tuple[float, int]:
        """Take a place. Returns seconds until the job is to look again, and about how many wait before it; 0.0
        means that it has its place."""
        self.holders = {job: holder for job, holder in self.holders.items() if holder.until > now}
        held = self.holders.get(job_id)
        is_overtaking = not came_back and max(self.line, self.late) > now
        if held is not None or (len(self.holders) < places and not is_overtaking):
            self.holders[job_id] = Holder(held.since if held is not None else now, now + ttl)
            if came_back and self.waiting:
                self.waiting -= 1
            return 0.0, 0
        if max(self.line, self.late) <= now:
            self.waiting = int(came_back)  # nobody has a moment to come: those who had one have gone
        if not came_back:
            self.waiting += 1
        ages = [now - holder.since for holder in self.holders.values()]
        mean = max(self.mean, sum(ages) / len(ages) if ages else 0.0)
        between = max(_SHORTEST, _BRISK * mean / places)
        furthest = now + max(self.waiting / _LOOKS, min(max(mean / 4, _SOON[0]), _SOON[1]))
        slot = min(max(self.late if came_back else self.line, now) + between, furthest)
        if came_back:
            self.late = slot
        else:
            self.line = slot
        return slot - now, min(self.waiting - 1, int((slot - now) / between))

    def stay(self, now: float, job_id: str, *, ttl: float) -> None:
        """Keep a place for longer. One that was given back meanwhile stays free."""
        held = self.holders.get(job_id)
        if held is not None:
            held.until = now + ttl

    def leave(self, now: float, job_id: str) -> None:
        """Give a place back."""
        held = self.holders.pop(job_id, None)
        if held is not None:
            self.mean += _WEIGHT * (now - held.since - self.mean)

    def ttl(self, now: float) -> float:
        """Seconds for which this matters, and a little more."""
        return (
            max(self.line, self.late, now, *(holder.until for holder in self.holders.values())) - now + KEPT
        )
