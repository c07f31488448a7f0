"""Every question and act of the command line, the board and the API.

    operations = Operations(broker, who="ada")
    operations.why(job_id).sentence
    operations.dead.replay(Letters(fingerprint="1f0c2d..."))

Each act is audited under the name that is given. Nothing here prints, asks or exits.
"""

from __future__ import annotations

from callboard.brokers.base import Broker
from callboard.errors import StoreUnavailable
from callboard.operations.audit import Audit
from callboard.operations.configuration import Setting, settings_report
from callboard.operations.dead_letters import DeadLetters
from callboard.operations.declared import ActorSchema, schemas
from callboard.operations.jobs import Jobs
from callboard.operations.letters import Letters
from callboard.operations.quarantine import Quarantine
from callboard.operations.schedules import Schedules
from callboard.operations.waiting import Queues, QueueStatus
from callboard.operations.why import Why, explain, gather
from callboard.store.base import AuditEntry, Heartbeat, Store


class Operations:
    """What can be asked of, and done to, the jobs of a broker.

    Args:
        broker: Whose jobs.
        who: The name under which acts are audited.

    Attributes:
        jobs: Search, show, cancel, retry.
        dead: Dead letters.
        queues: Queues: how full, paused, purged.
        quarantine: What can't be read or trusted.
        schedules: Schedules: when they are due, what became of their ticks, paused, run now.
    """

    def __init__(self, broker: Broker, *, who: str = "cli") -> None:
        self.broker = broker
        self.audit = Audit(broker.store, who, broker.clock)
        self.dead = DeadLetters(broker, self.audit)
        self.jobs = Jobs(broker, self.audit, self.dead)
        self.queues = Queues(broker, self.audit)
        self.quarantine = Quarantine(broker, self.audit)
        self.schedules = Schedules(broker, self.audit)

    def why(self, job_id: str) -> Why:
        """Where a job is and why it isn't running, in a sentence. Never fails: what can't be asked is said."""
        return explain(gather(self.broker, job_id))

    def workers(self) -> list[Heartbeat]:
        """The workers that live.

        Raises:
            StoreUnavailable
        """
        return self._store().workers()

    def audit_log(self, *, limit: int = 100, before: float | None = None) -> list[AuditEntry]:
        """Who did what, the newest first.

        Raises:
            StoreUnavailable
        """
        return self._store().audit_log(limit=limit, before=before)

    def schemas(self) -> list[ActorSchema]:
        """The actors that are declared here, and what they accept."""
        return schemas(self.broker)

    def _store(self) -> Store:
        if self.broker.store is None:
            raise StoreUnavailable("this broker has no store")
        return self.broker.store


__all__ = [
    "ActorSchema",
    "Letters",
    "Operations",
    "QueueStatus",
    "Setting",
    "Why",
    "settings_report",
]
