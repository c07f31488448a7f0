"""Runs that were cut short: their process died by itself while it ran them. Three, and the job is poison.

Nothing is written for this while jobs run: the supervisor reads from the slots what a dead process ran. It notes
that in memory that all its processes share, and a process that has the application writes it to the store, where
workers on other hosts find it. Only a job that is delivered again is looked up.

One that runs beside others may have done nothing but stand beside the culprit. So from then on it runs alone in its
process (`callboard.worker.solitude`), and only one of the three may have been in company: an innocent job never
dies of its neighbours. A process that was told to stop, and killed because it didn't, counts for nobody.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec

from callboard.brokers.base import Broker
from callboard.brokers.claim import CUT_SHORT, ClaimedMessage, Die, Later
from callboard.envelope import AttemptError
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.operations.why import can_locate
from callboard.states import State, order
from callboard.store.base import Change, Store

log = get_logger(__name__)

#: After so many the job is dead.
POISON_AFTER = 3
_PAUSE_FIRST, _PAUSE_LAST = 1.0, 60.0
_KEPT = 30 * 86_400.0  # seconds
_KEPT_PER_JOB = 100
_ENTRY, _ENTRIES = 512, 1024


class CutRun(msgspec.Struct, frozen=True, gc=False):
    """A run whose process died.

    Attributes:
        job_id: The job's.
        at: When, in seconds since the epoch.
        worker: The process, as 'host:pid'.
        exit: How it ended: 'signal 9 (SIGKILL)', 'exit code 1'.
        seconds: For how long the job had run.
        peak_memory: The most that the process ever had in memory, in bytes; 0 where that isn't known.
        beside: How many other jobs it ran.
    """

    job_id: str
    at: float
    worker: str
    exit: str
    seconds: float
    peak_memory: int = 0
    beside: int = 0

    def __str__(self) -> str:
        verb = "was ended by" if self.exit.startswith("signal") else "ended with"
        others = f" and {self.beside} other{'s' if self.beside > 1 else ''}" if self.beside else ""
        memory = f", with up to {self.peak_memory / 2**20:,.0f} MiB of memory" if self.peak_memory else ""
        return (
            f"worker {self.worker} {verb} {self.exit} while it ran this job{others}, "
            f"for {self.seconds:.1f} s by then{memory}"
        )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CutRun).decode
_decode_many = msgspec.json.Decoder(list[CutRun]).decode


class CutRunMemory:
    """The last 1,024 of them under one supervisor, who alone adds. Made before its processes are forked."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _ENTRY * _ENTRIES)
        self._added = 0

    def add(self, runs: Iterable[CutRun]) -> None:
        """Note runs for all processes."""
        for run in runs:
            data = _encode(run)
            if len(data) > _ENTRY - 2:  # no id of a job, and no host's name, is so long
                continue
            start = self._added % _ENTRIES * _ENTRY
            # Its length comes last, so that nobody takes half of it for the whole.
            self._memory[start : start + 2] = bytes(2)
            self._memory[start + 2 : start + 2 + len(data)] = data
            self._memory[start : start + 2] = len(data).to_bytes(2, "little")
            self._added += 1

    def of_job(self, job_id: str) -> list[CutRun]:
        """Those of one job."""
        return [run for run in self._with(job_id) if run.job_id == job_id]

    def of_worker(self, worker: str) -> list[CutRun]:
        """Those of one process."""
        return [run for run in self._with(worker) if run.worker == worker]

    def _with(self, text: str) -> Iterator[CutRun]:
        """Those in which a text occurs."""
        data = text.encode()
        at = self._memory.find(data, 0)
        while at >= 0:
            start = at // _ENTRY * _ENTRY
            length = int.from_bytes(self._memory[start : start + 2], "little")
            with suppress(msgspec.DecodeError):  # it is being written over
                yield _decode(self._memory[start + 2 : start + 2 + length])
            at = self._memory.find(data, start + _ENTRY)


def remember(store: Store, runs: Iterable[CutRun]) -> None:
    """Write runs to the store.

    Raises:
        StoreUnavailable
    """
    for run in runs:
        known = _stored(store, run.job_id)
        if run not in known:
            store.put_result(_key(run.job_id), _encode([*known, run][-_KEPT_PER_JOB:]), ttl=_KEPT)


def cut_runs(
    store: Store | None, memory: CutRunMemory | None, job_id: str, *, since: float = 0.0
) -> list[CutRun]:
    """What is known of a job's runs that were cut short after a moment, by the store and by this worker.

    While the store can't be read, that is what this worker knows by itself.
    """
    found = memory.of_job(job_id) if memory is not None else []
    if store is not None:
        try:
            found += _stored(store, job_id)
        except StoreUnavailable as error:
            log.warning("only this worker's own deaths are known", job_id=job_id, error=str(error))
    unique = {(run.worker, run.at): run for run in found if run.at > since}
    return sorted(unique.values(), key=lambda run: run.at)


def is_poison(runs: Sequence[CutRun]) -> bool:
    """Whether a job has taken its process down three times; of those in company one counts."""
    alone = sum(not run.beside for run in runs)
    return alone + (alone < len(runs)) >= POISON_AFTER


def settle_cut_run(broker: Broker, message: ClaimedMessage, runs: Sequence[CutRun]) -> None:
    """Let a job that came back wait for a moment, ever longer; or be dead, if it is poison.

    Args:
        broker: Whose message it is.
        message: As it was delivered again. It is settled afterwards.
        runs: All that were cut short, the last of which it wasn't told of yet.
    """
    last = runs[-1]
    if is_poison(runs):
        log.error("job is poison", job_id=message.message_id, actor=message.actor_name, last=str(last))
        # As the letter has room for one last error, the others join those that the message carries.
        attempts = [_attempt(message, run) for run in runs[-POISON_AFTER:]]
        message.headers.errors.extend(attempts[:-1])
        message.fail()
        message.disposition = Die(
            f"poison: {len(runs)} runs took their worker down, the last: {last}", failed_run=attempts[-1]
        )
    else:
        pause = min(_PAUSE_LAST, _PAUSE_FIRST * 2.0 ** (len(runs) - 1))
        message.headers.crashes = len(runs)
        message.disposition = Later(
            State.RETRYING,
            due=broker.clock() + pause,
            reason=f"{CUT_SHORT}: {last} ({len(runs)} of {POISON_AFTER})",
        )
    broker.finish(message)


def correct_records(broker: Broker, runs: Iterable[CutRun]) -> None:
    """Correct records that say of a run that was cut short that it goes on.

    If the broker can tell that it has the message no more, the run had come to its end, and had been acknowledged.

    Raises:
        BrokerUnavailable, StoreUnavailable
    """
    store = broker.store
    assert store is not None
    for run in runs:
        record = store.get(run.job_id)
        if (
            record is None
            or record.state is not State.RUNNING
            or not record.worker.startswith(f"{run.worker}:")
        ):
            continue
        # It has the order of the "running" that it corrects, so whatever has become known since is newer.
        change = Change(job_id=run.job_id, order=record.order, state=State.QUEUED, at=run.at)
        if can_locate(broker.driver) and broker.driver.locate(run.job_id) is None:
            if store.is_cancelled(run.job_id):  # it has succeeded or was cancelled: nobody knows
                continue
            change.order = order(record.order // order(1, State.SCHEDULED), State.SUCCEEDED)
            change.state, change.finished_at, change.reason = State.SUCCEEDED, run.at, ""
            change.event = f"it was acknowledged just before its worker {run.worker} died of {run.exit}"
        else:
            change.reason = f"{CUT_SHORT}: {run}"
        store.write([change])


def _attempt(message: ClaimedMessage, run: CutRun) -> AttemptError:
    return AttemptError(message.attempt, run.at, "WorkerDied", str(run), run.worker)


def _stored(store: Store, job_id: str) -> list[CutRun]:
    data = store.get_result(_key(job_id))
    return _decode_many(data) if data is not None else []


def _key(job_id: str) -> str:
    return f"cut-runs:{job_id}"
