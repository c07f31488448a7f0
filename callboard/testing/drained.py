"""What came of the jobs that a test let run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from callboard.worker.inline import JobRun


@dataclass(slots=True)
class Drained:
    """What `Jobs.drain` did: every run in its order, and how many ended in which way."""

    runs: list[JobRun] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = Counter(run.outcome for run in self.runs)
        return f"<Drained {', '.join(f'{outcome}: {n}' for outcome, n in counts.items()) or 'nothing'}>"

    def count(self, outcome: str) -> int:
        """How many runs ended with an outcome: a `State`, 'crashed', 'quarantined' or 'lost'."""
        return sum(run.outcome == outcome for run in self.runs)

    @property
    def succeeded(self) -> int:
        """Jobs that succeeded."""
        return self.count("succeeded")

    @property
    def retried(self) -> int:
        """Runs that failed and were, or will be, tried again."""
        return self.count("retrying")

    @property
    def snoozed(self) -> int:
        """Runs that asked to come back later."""
        return self.count("snoozed")

    @property
    def dead(self) -> int:
        """Jobs that became dead letters."""
        return self.count("dead")

    @property
    def cancelled(self) -> int:
        """Jobs that were cancelled."""
        return self.count("cancelled")

    @property
    def expired(self) -> int:
        """Jobs that weren't started in time."""
        return self.count("expired")

    @property
    def crashed(self) -> int:
        """Runs in which the worker was killed: one at most."""
        return self.count("crashed")
