"""Why a job isn't running: one sentence about where it is, from all that the store and the broker know.

The evidence is gathered first, as far as it can be had; then the job's state picks the sentence. What
contradicts itself is said so: a record that is behind, a worker that gives no sign of life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callboard import dead_letter, queues
from callboard.brokers.base import Broker
from callboard.brokers.claim import CUT_SHORT
from callboard.brokers.driver import Driver, Location, QueueCounts, StoredMessage, Verdict
from callboard.errors import BrokerUnavailable, StoreUnavailable, Unreadable
from callboard.operations.moments import clock, span
from callboard.operations.quarantine import Suspect, suspect_of_job
from callboard.states import State
from callboard.store.base import Control, Heartbeat, Record
from callboard.store.leases import lease_owner


@dataclass(slots=True, kw_only=True)
class Why:
    """The answer: a sentence for people, and what it rests on, as JSON values, for programs.

    `known` is False where neither the store nor the broker knows the job.
    """

    job_id: str
    sentence: str
    known: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What could be found out about a job."""

    job_id: str
    now: float
    record: Record | None = None
    location: Location | None = None
    locatable: bool = False  # whether the broker can look a job up at all
    leased: bool = False  # whether it gives out again what runs, so that jobs need leases in the store
    suspect: Suspect | None = None  # its message, if that is in quarantine
    counts: QueueCounts | None = None  # of the queue it waits in
    control: Control | None = None
    lease: str = ""  # which worker has the job's lease, where jobs have one, as 'host:pid' of its supervisor
    workers: list[Heartbeat] = field(default_factory=list)
    declared: frozenset[str] = (
        frozenset()
    )  # the queues of the application's actors, as far as they could be loaded
    dropped: Mapping[str, int] = field(default_factory=dict)
    store_error: str = ""
    broker_error: str = ""

    @property
    def queue(self) -> str:
        """The queue it is in, or was last."""
        if self.location is not None:
            return self.location.queue
        return self.record.queue if self.record is not None else ""

    @property
    def cancel_asked(self) -> float | None:
        """When somebody asked that the job be cancelled."""
        return self.control.cancelled.get(self.job_id) if self.control is not None else None

    def consumers(self) -> list[Heartbeat]:
        """The living workers that consume its queue."""
        return [worker for worker in self.workers if self.queue in worker.queues]

    def worker(self, name: str) -> Heartbeat | None:
        """A worker's sign of life, if it has given one lately."""
        return next((worker for worker in self.workers if worker.worker == name), None)


def can_locate(driver: Driver) -> bool:
    """Whether a driver can look jobs up, so that None from it means that the broker has no such job."""
    return type(driver).locate is not Driver.locate


def gather(broker: Broker, job_id: str) -> Evidence:
    """Ask the store and the broker. What is away shows in the evidence, and raises nothing."""
    evidence = Evidence(job_id=job_id, now=broker.clock(), locatable=can_locate(broker.driver))
    evidence.declared = frozenset(broker.queues)
    evidence.leased = broker.store is not None and not broker.driver.claims_are_leases
    store = broker.store
    if store is None:
        evidence.store_error = "this broker has no store"
    else:
        try:
            evidence.record = store.get(job_id)
            evidence.control = store.control()
            evidence.workers = store.workers()
            if evidence.leased:
                evidence.lease = ":".join((lease_owner(store, job_id) or "").split(":")[:2])
            evidence.dropped = store.counters("records.dropped")
        except StoreUnavailable as error:
            evidence.store_error = str(error)
    try:
        evidence.location = broker.driver.locate(job_id)
        record = evidence.record
        if evidence.location is None and (record is None or not record.state.is_end):
            evidence.suspect = suspect_of_job(broker.driver, job_id)
        if evidence.location is None and not evidence.locatable and _may_be_dead(evidence):
            evidence.location = _among_the_dead(broker.driver, job_id)
        if evidence.location is not None or (record is not None and not record.state.is_end):
            queue = evidence.queue
            evidence.counts = broker.driver.counts([queue])[queue]
    except BrokerUnavailable as error:
        evidence.broker_error = str(error)
    return evidence


def _may_be_dead(evidence: Evidence) -> bool:
    """Whether nothing is known of a job, or its record says that it runs on a worker of which nothing is known."""
    record = evidence.record
    if record is None:
        return True
    return record.state is State.RUNNING and not evidence.store_error and not evidence.worker(record.worker)


def _among_the_dead(driver: Driver, job_id: str) -> Location | None:
    """Where a job's dead letter lies, by reading them all: the last resort, for a job without a record."""
    found: list[Location] = []

    def look(message: StoredMessage) -> Verdict:
        try:
            if dead_letter.decode(message.body).job_id == job_id:
                found.append(Location(message.queue))
        except Unreadable:
            pass
        return Verdict.KEEP

    names = [name for name in driver.queues() if name.endswith(".dead")]
    for name, count in driver.counts(names).items():
        if count.ready and not found:
            driver.walk(name, look)
    return found[0] if found else None


def explain(evidence: Evidence) -> Why:
    """The sentence."""
    record = evidence.record
    if evidence.suspect is not None:
        why = Why(job_id=evidence.job_id, sentence=_quarantined(evidence, evidence.suspect))
        why.facts = _record_facts(evidence, record) if record is not None else {}
        why.facts["quarantined"] = evidence.suspect.id
    elif record is None:
        why = _without_record(evidence)
    elif not record.state.is_end and evidence.location and not is_job_queue(evidence.location.queue):
        why = Why(job_id=record.job_id, sentence=_dead_unrecorded(evidence, record))
        why.facts = _record_facts(evidence, record)
    else:
        why = Why(job_id=record.job_id, sentence=_SENTENCES[record.state](evidence, record))
        why.facts = _record_facts(evidence, record)
    why.facts |= _shared_facts(evidence)
    why.sentence = why.sentence[0].upper() + why.sentence[1:] + _doubts(evidence) + "."
    return why


# -- waiting -----------------------------------------------------------------------------------------------


def _queued(e: Evidence, record: Record) -> str:
    since = span(e.now - record.updated_at)
    cut = f", after {record.reason}" if record.reason.startswith(CUT_SHORT) else ""
    return f"queued for {since} in {e.queue}{cut}{_obstacle(e)}"


def _scheduled(e: Evidence, record: Record) -> str:
    if record.due_at is not None and record.due_at > e.now:
        return f"scheduled: it may start in {_until(record.due_at, e.now)}{_cancel_note(e)}"
    return f"scheduled, and due {_since(record.due_at, e.now)} in {e.queue}{_obstacle(e)}"


def _retrying(e: Evidence, record: Record) -> str:
    failed = record.reason or f"attempt {record.attempt} failed: {_error(record)}"
    # A run that was cut short is no attempt: the same one is begun again.
    attempt = record.attempt if failed.startswith(CUT_SHORT) else record.attempt + 1
    if record.due_at is not None and record.due_at > e.now:
        return (
            f"waiting {_until(record.due_at, e.now)} for attempt {attempt}, "
            f"since {_lower(failed)}{_cancel_note(e)}"
        )
    return (
        f"due {_since(record.due_at, e.now)} for attempt {attempt} in {e.queue}, "
        f"after {_lower(failed)}{_obstacle(e)}"
    )


def _snoozed(e: Evidence, record: Record) -> str:
    if record.reason.startswith("waits for"):
        if record.due_at is not None and record.due_at > e.now:
            return f"{record.reason}: it may start in {_until(record.due_at, e.now)}{_cancel_note(e)}"
        return f"{record.reason}, and due {_since(record.due_at, e.now)} in {e.queue}{_obstacle(e)}"
    reason = f" ({record.reason})" if record.reason else ""
    if record.due_at is not None and record.due_at > e.now:
        return f"snoozed by itself{reason}: it comes back in {_until(record.due_at, e.now)}{_cancel_note(e)}"
    return f"snoozed by itself{reason}, and due {_since(record.due_at, e.now)} in {e.queue}{_obstacle(e)}"


def _parked(e: Evidence, record: Record) -> str:
    since = _parked_since(record)
    reason = record.reason or "no worker knows its actor, version or options"
    again = ""
    if record.due_at is not None and record.due_at > e.now:
        again = f"; it is looked at again in {span(record.due_at - e.now)}"
    return (
        f"parked for {span(e.now - since)}, since {clock(since)}: {reason}{again}; "
        "start a worker that knows it, or it is dead after CALLBOARD_PARK_DEADLINE"
        f"{_cancel_note(e)}"
    )


def _obstacle(e: Evidence) -> str:
    """What keeps a job that is due from starting."""
    queue, consumers = e.queue, e.consumers()
    if e.broker_error:
        return _cancel_note(e)
    if e.locatable and e.location is None:
        return (
            ", says its record, but the broker no longer has it: it has ended or moved on, "
            "and what came of it is not recorded yet or was dropped"
        )
    if e.cancel_asked is not None:
        return _cancel_note(e)
    if e.location is not None and e.location.claimed_by:
        return f": worker {e.location.claimed_by} has taken it{_life(e, e.location.claimed_by)} and starts it next"
    if e.control is not None and queue in e.control.paused:
        return f", which is paused; 'callboard queues resume {queue}' lets it go"
    if not consumers and not (e.counts is not None and e.counts.consumers):
        category = queues.category_of(queue)
        if e.declared and queue not in e.declared:
            return (
                ", and no worker consumes that queue, for no actor here has it: declare one with "
                f"category='{category}' until nothing waits there, or throw that away: callboard queues purge {queue}"
            )
        return f", and no worker consumes that queue; start one: callboard worker --queues '{category}.*'"
    return _behind(e, consumers)


def _behind(e: Evidence, consumers: list[Heartbeat]) -> str:
    busy = sum(len(worker.running) for worker in consumers)
    threads = sum(worker.threads for worker in consumers)
    others = e.counts.ready - 1 if e.counts is not None else 0
    load = ""
    if threads and busy >= threads:
        one = len(consumers) == 1
        workers = (
            "the one worker that consumes it" if one else f"the {len(consumers)} workers that consume it"
        )
        load = (
            f"; all {threads} threads of {workers} are busy"
            if threads > 1
            else f"; the only thread of {workers} is busy"
        )
    if others > 0:
        return f", behind up to {others:,} {'other' if others == 1 else 'others'}{load}"
    return load or ", next in line: a worker takes it within a moment"


def _cancel_note(e: Evidence) -> str:
    if e.cancel_asked is None:
        return ""
    return (
        f"; its cancellation was asked for {span(e.now - e.cancel_asked)} ago, so it ends as cancelled "
        "when a worker takes it"
    )


# -- running -----------------------------------------------------------------------------------------------


def _running(e: Evidence, record: Record) -> str:
    since = record.started_at or record.updated_at
    run = f"attempt {record.attempt}, " if record.attempt > 1 else ""
    cancel = ""
    if e.cancel_asked is not None:
        cancel = (
            "; its cancellation was asked for: it stops when it next looks, or is interrupted after its grace"
        )
    if e.locatable and e.location is None and not e.broker_error:
        return (
            f"running on {record.worker} says its record, but the broker no longer has it: it has ended, "
            "and how is not recorded yet or was dropped"
        )
    progress = ""
    if record.progress:
        progress = f", {record.progress:.0%} done"
    if record.progress_note:
        progress += f" ({record.progress_note})"
    running = f"running for {span(e.now - since)} ({run}since {clock(since)})"
    if not record.worker:  # the start is not recorded, but what the run has told since
        return f"{running}{progress}; on which worker was not recorded{cancel}"
    return f"{running} on worker {record.worker}{progress}{_life(e, record.worker)}{cancel}"


def _life(e: Evidence, worker: str) -> str:
    """What is known of a worker's life, as an afterthought."""
    if e.store_error:
        return ""
    if e.worker(worker) is None:
        if e.lease:
            return (
                f", which gives no sign of life; the worker on {e.lease} still has its lease: it doesn't run "
                "elsewhere before that is freed, or is over, ten seconds after it was last renewed"
            )
        return ", which gives no sign of life: if it is gone, the job runs again as soon as the broker gives it back"
    return ""


# -- ended -------------------------------------------------------------------------------------------------


def _succeeded(e: Evidence, record: Record) -> str:
    run = ""
    if record.started_at is not None and record.finished_at is not None:
        run = f", after running for {span(record.finished_at - record.started_at)}"
    attempts = f" at attempt {record.attempt}" if record.attempt > 1 else ""
    return f"succeeded {span(e.now - _ended(record))} ago{attempts}{run}"


def _dead(e: Evidence, record: Record) -> str:
    reason = record.reason or _error(record)
    return (
        f"dead for {span(e.now - _ended(record))}: {reason}; "
        f"'callboard dead replay {record.job_id}' runs it again when the cause is mended"
    )


def _cancelled(e: Evidence, record: Record) -> str:
    return f"{record.reason or 'cancelled'}, {span(e.now - _ended(record))} ago"


def _expired(e: Evidence, record: Record) -> str:
    return f"expired {span(e.now - _ended(record))} ago: {record.reason or 'its deadline passed before it started'}"


def _discarded(e: Evidence, record: Record) -> str:
    return f"discarded {span(e.now - _ended(record))} ago: {record.reason or 'somebody threw it away'}"


_SENTENCES: dict[State, Callable[[Evidence, Record], str]] = {
    State.SCHEDULED: _scheduled,
    State.QUEUED: _queued,
    State.RUNNING: _running,
    State.RETRYING: _retrying,
    State.SNOOZED: _snoozed,
    State.PARKED: _parked,
    State.SUCCEEDED: _succeeded,
    State.DEAD: _dead,
    State.CANCELLED: _cancelled,
    State.EXPIRED: _expired,
    State.DISCARDED: _discarded,
}


def _quarantined(e: Evidence, suspect: Suspect) -> str:
    since = "" if suspect.since is None else f" for {span(e.now - suspect.since)}"
    return (
        f"in quarantine{since}, from {suspect.queue or 'an unknown queue'}: {suspect.reason}; "
        f"'callboard quarantine show {suspect.id}' shows it"
    )


def _dead_unrecorded(e: Evidence, record: Record) -> str:
    """Its process was killed when the letter was there, and the record not yet written."""
    return (
        f"dead: its letter lies in {e.queue}; 'callboard dead show {e.job_id}' tells why; its record, which says "
        f"{record.state}, is behind: what came of it was lost with the process that knew"
    )


# -- without a record --------------------------------------------------------------------------------------


def _without_record(e: Evidence) -> Why:
    place = e.location
    if place is None:
        return Why(job_id=e.job_id, known=False, sentence=_unknown(e))
    if place.claimed_by:
        text = f"worker {place.claimed_by} has it, from {place.queue}"
    elif place.due is not None and place.due > e.now:
        text = f"it waits in {place.queue}, and is due in {_until(place.due, e.now)}"
    elif not is_job_queue(place.queue):
        text = f"dead: its letter lies in {place.queue}; 'callboard dead show {e.job_id}' tells why"
    else:
        text = f"it waits in {place.queue}{_obstacle(e)}"
    return Why(job_id=e.job_id, sentence=text + ("" if e.store_error else "; the store has no record of it"))


def _unknown(e: Evidence) -> str:
    """Neither the store nor the broker has it, or they can't say."""
    if e.broker_error and e.store_error:
        return "whether there is such a job can't be told"
    if e.store_error:
        if e.locatable:
            return "the broker has no such job: it has ended, or never was"
        return "whether there is such a job can't be told, as the broker can't look up a single one"
    if e.broker_error or not e.locatable:
        looked = (
            ""
            if e.broker_error
            else "; of the broker, only its dead letters can be searched, and have no such job"
        )
        return f"the store knows no such job{looked}"
    return "there is no such job that the store or the broker knows"


# -- the rest of the sentence ------------------------------------------------------------------------------


def _doubts(e: Evidence) -> str:
    """What makes the answer less than certain."""
    doubts = []
    if e.store_error:
        doubts.append(f"the store can't be asked: {_sentence_part(e.store_error)}")
        if e.leased:
            doubts.append(
                "a job that the broker delivered before waits until it can, for nobody knows whether it runs"
            )
    if e.broker_error:
        doubts.append(f"the broker can't be asked: {_sentence_part(e.broker_error)}")
    if dropped := _dropped_since(e):
        doubts.append(
            f"{dropped:,} records were dropped between {clock(e.dropped.get('records.dropped_since', 0))} and "
            f"{clock(e.dropped.get('records.dropped_until', 0))}, so this may be out of date"
        )
    return "".join(f"; {doubt}" for doubt in doubts)


def _dropped_since(e: Evidence) -> int:
    """How many records were dropped, if that can have touched this one."""
    dropped = e.dropped.get("records.dropped", 0)
    if not dropped or e.record is None:
        return dropped
    if e.record.state.is_end and e.record.state is not State.DEAD:
        return 0
    return dropped if e.dropped.get("records.dropped_until", 0) >= int(e.record.updated_at) else 0


def _record_facts(e: Evidence, record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "state": str(record.state),
        "actor": record.actor,
        "attempt": record.attempt,
        "enqueued_at": record.enqueued_at,
        "updated_at": record.updated_at,
        "due_at": None if record.state.is_end or record.state is State.RUNNING else record.due_at,
        "reason": record.reason,
        "error": _error(record) if record.error_type else "",
    }
    if record.state is State.RUNNING:
        alive = e.worker(record.worker)
        facts |= {
            "worker": record.worker,
            "worker_alive": alive is not None,
            "started_at": record.started_at,
            "progress": record.progress,
        }
    if record.state is State.PARKED:
        facts["parked_since"] = _parked_since(record)
    return facts


def _shared_facts(e: Evidence) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "queue": e.queue,
        "cancel_asked_at": e.cancel_asked,
        "paused": None if e.control is None else e.queue in e.control.paused,
        "workers": len(e.consumers()),
    }
    if e.location is not None:
        facts |= {"claimed_by": e.location.claimed_by}
    if e.counts is not None:
        facts |= {"ready": e.counts.ready, "claimed": e.counts.claimed, "consumers": e.counts.consumers}
    if dropped := _dropped_since(e):
        facts["records_dropped"] = dropped
    if e.lease:
        facts["lease"] = e.lease
    if e.store_error:
        facts["store_error"] = e.store_error
    if e.broker_error:
        facts["broker_error"] = e.broker_error
    return facts


def _parked_since(record: Record) -> float:
    """When the present stay began: it may have been looked at, and parked again, several times."""
    since = record.updated_at
    for event in reversed(record.events):
        if event.state is not State.PARKED:
            break
        since = event.at
    return since


def _ended(record: Record) -> float:
    return record.finished_at or record.updated_at


def _error(record: Record) -> str:
    if not record.error_type:
        return record.error or "it is not known why"
    return f"{record.error_type}: {record.error}" if record.error else record.error_type


def _until(moment: float, now: float) -> str:
    return f"{span(moment - now)} (at {clock(moment)})"


def _since(moment: float | None, now: float) -> str:
    return f"for {span(now - moment)}" if moment is not None else "now"


def _lower(text: str) -> str:
    """A reason in the middle of a sentence. What begins with an acronym stays as it is."""
    return text[0].lower() + text[1:] if len(text) > 1 and text[1].islower() else text


def _sentence_part(text: str) -> str:
    return text.rstrip(".?")


def is_job_queue(queue: str) -> bool:
    """Whether jobs wait in a queue, and not dead letters or what can't be read."""
    return queue != queues.QUARANTINE and not queue.endswith(".dead")
