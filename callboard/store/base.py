"""The interface of a store: what is known about jobs.

The broker is the truth of where jobs are; the store knows about them. Losing it loses history, never a
job. Everything here is small, synchronous and safe to call from any thread; a store that can't be
reached raises `StoreUnavailable`. Times are seconds since the epoch, as floats.

Records are not written here directly by a running job but behind it, in batches, by
`callboard.store.recorder.Recorder`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from callboard.states import State

if TYPE_CHECKING:
    from pathlib import Path

#: How many ticks of each schedule are remembered.
TICKS_KEPT = 500


class Change(msgspec.Struct, kw_only=True, gc=False):
    """What has become known of one job. `None` leaves what the record says as it is.

    Changes may be written late and in any order: each field of a record ends up with what the change with
    the highest `order` (see `callboard.states.order`) says of it, the last one written among equals.

    Every job makes some: a struct is made in a quarter of the time that a dataclass takes.
    """

    job_id: str
    order: int
    state: State
    at: float
    actor: str | None = None
    category: str | None = None
    queue: str | None = None
    priority: int | None = None
    tags: tuple[str, ...] | None = None
    payload: str | None = None  # JSON, secrets masked
    enqueued_at: float | None = None
    due_at: float | None = None  # when a scheduled, retrying, snoozed or parked job may start
    expires_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int | None = None  # counted runs so far, the current one included
    worker: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    fingerprint: str | None = None
    reason: str | None = None  # why it is where it is, in a few words
    progress: float | None = None
    progress_note: str | None = None
    event: str | None = None  # a line of the job's story, kept beside the others


@dataclass(slots=True, kw_only=True)
class Event:
    """A line of a job's story."""

    at: float
    state: State
    attempt: int
    worker: str
    text: str


@dataclass(slots=True, kw_only=True)
class Record:
    """What the store knows of a job."""

    job_id: str
    order: int
    state: State
    updated_at: float
    actor: str = ""
    category: str = ""
    queue: str = ""
    priority: int = 3
    tags: tuple[str, ...] = ()
    payload: str = ""
    enqueued_at: float | None = None
    due_at: float | None = None
    expires_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    worker: str = ""
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    reason: str = ""
    progress: float | None = None
    progress_note: str = ""
    events: tuple[Event, ...] = ()


@dataclass(slots=True, kw_only=True)
class Query:
    """A search for records. Every condition that is set must hold; the newest jobs come first.

    A record must have one of the states, categories, actors and queues, and all of the tags. How new a job
    is, `since` and `until` go by `enqueued_at`, or by the first change's `at` where that didn't say it.
    `text` looks into payload, error and reason, whatever the case of ASCII letters. `limit` is 1 to 1,000.
    `after` is the `next` of an earlier page.
    """

    states: Sequence[State] = ()
    categories: Sequence[str] = ()
    actors: Sequence[str] = ()
    queues: Sequence[str] = ()
    tags: Sequence[str] = ()
    fingerprint: str | None = None
    since: float | None = None  # at or after
    until: float | None = None  # before
    text: str | None = None
    limit: int = 50
    after: str | None = None


@dataclass(slots=True, kw_only=True)
class Page:
    """One page of a search; `next` is None on the last.

    A search that has to look at very many records gives what it has found so far, perhaps nothing yet,
    with a `next` to go on.
    """

    records: list[Record]
    next: str | None = None


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """A sign of life of a worker process: rewritten every few seconds, gone when it stops or is stale."""

    worker: str  # host:pid:suffix, unique for ever
    at: float
    started_at: float
    host: str
    pid: int
    queues: tuple[str, ...]  # the queues it consumes
    threads: int
    running: tuple[str, ...] = ()  # ids of the jobs it runs
    claimed: int = 0  # jobs it holds and hasn't started


@dataclass(slots=True, kw_only=True)
class Control:
    """What was asked of running workers. Workers watch it, and act within a second.

    A `version` says only whether something has changed: compare it for equality.
    """

    version: int
    paused: frozenset[str]  # queue names
    cancelled: Mapping[str, float]  # job id -> when it was asked for


@dataclass(slots=True, kw_only=True)
class AuditEntry:
    """Who did what to which jobs: discards, purges, replays, cancels, pauses."""

    at: float
    actor: str  # who: a user name, or 'cli'
    action: str
    target: str
    count: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ScheduleState:
    """What is known of a schedule. `until` is None before a scheduler has served it."""

    name: str  # its actor's
    spec: str = ""  # when it is due, as it was declared when it was last begun
    until: float | None = None  # every tick up to this moment is dealt with
    paused_at: float | None = None
    paused_by: str = ""


class Fate(StrEnum):
    """What becomes of a tick."""

    ON_TIME = "on time"
    CAUGHT_UP = "caught up"  # sent later, by the schedule's misfire policy
    MISSED = "missed"  # nobody served it in time, and by the policy it isn't made up for
    OVERLAP = "overlap"  # skipped: the job of the tick before hadn't ended
    PAUSED = "paused"  # skipped: the schedule was paused
    FAILED = "failed"  # its job can't be sent, ever
    RUN_NOW = "run now"  # no tick, but somebody's wish


class Tick(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of a tick of a schedule, or of several in a row that had the same fate."""

    schedule: str
    due: float  # of several, the last one's
    fate: Fate
    at: float  # when that was decided
    by: str = ""  # who did
    job_id: str = ""  # the job that was sent
    reason: str = ""
    first: float | None = None  # of several, when the first was due
    count: int = 1


class ControlBell(ABC):
    """Wakes somebody who waits for a change of control. One thread's own, but for `ring`."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Return when control may have changed, or when it rang, or after `timeout` seconds at the latest.

        It never raises: while it can't hear of changes, it takes the whole time.
        """

    @abstractmethod
    def ring(self) -> None:
        """Let `wait` return now. From any thread."""

    @abstractmethod
    def close(self) -> None:
        """Hang up for good."""


class Store(ABC):
    """What is known about jobs.

    Attributes:
        path: The file on this host that has it all, where it is one.
    """

    path: Path | None = None

    # -- records ---------------------------------------------------------------------------------------

    @abstractmethod
    def write(self, changes: Sequence[Change]) -> None:
        """Apply changes, all or none, in one transaction. Meant for the `Recorder`."""

    @abstractmethod
    def get(self, job_id: str) -> Record | None:
        """One record with its story, or None."""

    @abstractmethod
    def search(self, query: Query) -> Page:
        """A page of records, newest first, without their stories.

        Raises:
            InvalidQuery: If the limit is out of range, or `after` is no page's `next`.
        """

    @abstractmethod
    def report_dropped(self, count: int, *, since: float, until: float) -> None:
        """Note that changes of so many records, made between two moments, could never be written.

        It shows in the counters `records.dropped`, and, in whole seconds since the epoch, in
        `records.dropped_since` (the earliest) and `records.dropped_until` (the latest).
        """

    @abstractmethod
    def count_by_state(self, *, category: str | None = None) -> dict[State, int]:
        """How many records there are in each state."""

    @abstractmethod
    def remove_ended(self, *, before: float, limit: int = 10_000) -> int:
        """Forget up to `limit` records that ended before a moment, those of the oldest jobs first; returns how
        many went. Dead ones stay."""

    # -- control ---------------------------------------------------------------------------------------

    @abstractmethod
    def control(self, *, known_version: int = -1) -> Control | None:
        """What is asked of workers, or None if nothing has changed since `known_version`."""

    def control_bell(self) -> ControlBell | None:
        """What tells at once of a change of control; None where one has to look."""
        return None

    @abstractmethod
    def pause(self, queue: str) -> None:
        """Ask workers to claim nothing more from a queue."""

    @abstractmethod
    def resume(self, queue: str) -> None:
        """Undo `pause`."""

    @abstractmethod
    def cancel(self, job_id: str, *, at: float) -> None:
        """Ask that a job never starts, or stops running. Kept until `forget_cancel`, or for 400 days."""

    @abstractmethod
    def forget_cancel(self, job_id: str) -> None:
        """The job has ended, or the request was withdrawn (a replay)."""

    @abstractmethod
    def is_cancelled(self, job_id: str) -> bool:
        """Whether a job's cancellation is asked for, read now (the workers' copy may be a second old)."""

    # -- keys: unique jobs, ticks, leases ----------------------------------------------------------------

    @abstractmethod
    def claim_key(self, key: str, owner: str, *, ttl: float, durable: bool = True) -> str:
        """Take a key for an owner, for `ttl` seconds by the store's clock, unless somebody has it.

        Returns the owner that has it now: the one given if it was free or already theirs (then its
        time starts anew). The claim outlives a power loss. Where it needn't, as with a lease, whose
        holder is gone by then too, `durable=False` saves waiting for the disk.
        """

    @abstractmethod
    def release_key(self, key: str, owner: str) -> bool:
        """Give a key back. False, and nothing done, if the owner doesn't have it."""

    @abstractmethod
    def key_owner(self, key: str) -> str | None:
        """Who has a key now."""

    # -- counters --------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, counter: str, n: int = 1) -> None:
        """Add to a named counter."""

    @abstractmethod
    def counters(self, prefix: str = "") -> dict[str, int]:
        """All counters whose names start with `prefix`."""

    # -- numbers: barriers, rate limits --------------------------------------------------------------------

    @abstractmethod
    def set_number(self, key: str, value: int, *, ttl: float) -> bool:
        """Set a number for `ttl` seconds. False, and nothing done, if the key has one."""

    @abstractmethod
    def move_number(
        self,
        key: str,
        by: int,
        *,
        ttl: float,
        least: int | None = None,
        most: int | None = None,
        sum_with: Collection[str] = (),
    ) -> bool:
        """Add to a number, which is 0 where there is none, and let it live `ttl` seconds from now.

        False, and nothing done, if it would fall under `least` or rise over `most`, or, together with
        the numbers of other keys (`sum_with`), over `most`.
        """

    @abstractmethod
    def has_number(self, key: str) -> bool:
        """Whether a key has a number now."""

    # -- limits ------------------------------------------------------------------------------------------

    @abstractmethod
    def reserve(self, key: str, *, every: float, burst: int, came_back: bool) -> float:
        """Reserve a start under a rate limit, by the store's clock.

        Args:
            key: Whose rate it is.
            every: Seconds between two starts.
            burst: How many may start at once after a lull.
            came_back: The job was given a time before, and that has come.

        Returns:
            Seconds until it may start, or ask again with `came_back`; 0 means that it starts now.
        """

    @abstractmethod
    def enter(self, key: str, job_id: str, *, places: int, ttl: float, came_back: bool) -> tuple[float, int]:
        """Take one of a key's places, for `ttl` seconds by the store's clock.

        Args:
            key: Whose places they are.
            job_id: Who takes one. A job that has one keeps it.
            places: How many there are.
            ttl: How long it is held without `stay`.
            came_back: The job was told to look again, and does so.

        Returns:
            Seconds until it is to look again, with `came_back`; 0 means that it has its place. And about how many
            wait before it.
        """

    @abstractmethod
    def stay(self, key: str, job_id: str, *, ttl: float) -> None:
        """Hold a place that the job has for `ttl` seconds from now."""

    @abstractmethod
    def leave(self, key: str, job_id: str) -> None:
        """Give a place back, if the job has one."""

    # -- heartbeats --------------------------------------------------------------------------------------

    @abstractmethod
    def beat(self, heartbeat: Heartbeat) -> None:
        """Write a worker's sign of life."""

    @abstractmethod
    def stopped(self, worker: str) -> None:
        """Remove a worker's sign of life: it has stopped."""

    @abstractmethod
    def workers(self, *, alive_within: float = 15.0) -> list[Heartbeat]:
        """The workers that gave a sign of life within so many seconds, by name."""

    # -- audit -------------------------------------------------------------------------------------------

    @abstractmethod
    def audit(self, entry: AuditEntry) -> None:
        """Append an entry; it is durable when this returns."""

    @abstractmethod
    def audit_log(self, *, limit: int = 100, before: float | None = None) -> list[AuditEntry]:
        """The newest entries first."""

    # -- schedules ---------------------------------------------------------------------------------------

    @abstractmethod
    def begin_schedule(self, name: str, *, spec: str, until: float) -> None:
        """From now on the ticks of a schedule count that are later than `until`. It stays paused if it is."""

    @abstractmethod
    def pause_schedule(self, name: str, *, at: float | None, by: str = "") -> None:
        """Pause a schedule, at a moment; None: go on."""

    @abstractmethod
    def schedules(self) -> dict[str, ScheduleState]:
        """What is known of all schedules, by name."""

    @abstractmethod
    def add_tick(self, tick: Tick, *, until: float | None = None) -> bool:
        """Write down what became of a tick. False, and it stays as it is, if that is known; durable otherwise.

        Of each schedule, the newest `TICKS_KEPT` stay.

        Args:
            tick: The tick, or several in a row.
            until: Every tick up to this moment is dealt with, too.
        """

    @abstractmethod
    def ticks(self, schedule: str, *, limit: int = 100) -> list[Tick]:
        """What became of a schedule's ticks, the newest first."""

    # -- results -----------------------------------------------------------------------------------------

    @abstractmethod
    def put_result(self, key: str, value: bytes, *, ttl: float) -> None:
        """Keep a result for `ttl` seconds."""

    @abstractmethod
    def get_result(self, key: str) -> bytes | None:
        """A result, or None if there is none (any more)."""

    @abstractmethod
    def remove_result(self, key: str) -> None:
        """Forget a result, if there is one."""

    # -- life --------------------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. A store can be closed twice."""
