"""Writes down what becomes of jobs. Never slows or stops one: see `callboard.store.recorder`."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker

from callboard import queues
from callboard.brokers.base import Broker as CallboardBroker
from callboard.brokers.claim import DONE, ClaimedMessage, Die, Drop, Finish, GiveBack, Later, job_order
from callboard.brokers.sent_records import SentRecords
from callboard.process import worker_name
from callboard.states import State, order
from callboard.store.base import Change


class Records(SentRecords):
    """Records each job when it is queued, started and settled.

    A short run is one change: that it started is told only if it still runs when the recorder gets to it.
    """

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.recorder is not None:
            broker.recorder.record_lazily(_Start(message))

    def after_ack(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        if broker.recorder is not None and (change := _settled(broker, message)) is not None:
            broker.recorder.record(change)

    after_nack = after_ack


class _Start:
    """That a run has started."""

    __slots__ = ("_message",)

    def __init__(self, message: ClaimedMessage) -> None:
        self._message = message

    def __call__(self) -> Change | None:
        message = self._message
        if message.settled:  # what became of it says when it started, too
            return None
        change = Change(
            job_id=message.message_id,
            order=job_order(message, State.RUNNING),
            state=State.RUNNING,
            at=message.started_at or 0.0,
            started_at=message.started_at,
            attempt=message.attempt,
            worker=worker_name(),
        )
        if message.headers.hop or message.delivery.redelivered:  # what an earlier run said isn't this one's
            change.progress, change.progress_note = 0.0, ""
        return change


def _settled(broker: CallboardBroker, message: ClaimedMessage) -> Change | None:
    """What a settled message's disposition tells."""
    disposition, headers, now = message.disposition, message.headers, broker.clock()
    category, priority = queues.split(message.queue_name)
    ran = message.run is not None  # it wasn't kept from running
    done = disposition is DONE  # as nearly all are
    change = Change(
        job_id=message.message_id,
        order=order(headers.hop, State.SUCCEEDED),
        state=State.SUCCEEDED if done else State.QUEUED,
        at=now,
        finished_at=now if done else None,
        reason="" if done else None,
        actor=message.actor_name,
        category=category,
        queue=message.queue_name,
        priority=priority._value_,
        enqueued_at=message.message_timestamp / 1000,
        started_at=message.started_at if ran else None,
        attempt=message.attempt if ran else None,
        worker=worker_name() if ran else None,
    )
    if done:
        return change
    if isinstance(disposition, Finish):
        change.state = disposition.state
        change.order = order(headers.hop, disposition.state)
        change.finished_at = now
        change.reason = disposition.reason
        change.event = disposition.reason
    elif isinstance(disposition, Later):
        change.state = disposition.state
        change.order = order(headers.hop + 1, disposition.state)
        change.due_at = disposition.due
        change.reason = disposition.reason
        change.event = disposition.reason or str(disposition.state)
        if disposition.failed_run is not None:
            change.error_type = disposition.failed_run.type
            change.error = disposition.failed_run.message
    elif isinstance(disposition, Die):
        change.state = State.DEAD
        change.order = order(headers.hop, State.DEAD)
        change.finished_at = now
        change.reason = disposition.reason
        change.event = disposition.reason
        change.traceback = disposition.traceback
        change.fingerprint = disposition.fingerprint
        if disposition.failed_run is not None:
            change.error_type = disposition.failed_run.type
            change.error = disposition.failed_run.message
    elif isinstance(disposition, GiveBack):
        # The hop stays the same, so this "queued" has the order of the "running" that it undoes.
        change.order = order(headers.hop, State.RUNNING)
        change.progress, change.progress_note = 0.0, ""
        change.event = "given back unfinished by a worker that stopped; the attempt doesn't count"
    elif isinstance(disposition, Drop) and ran:
        # A line of the story alone: whoever has the job now says everything else.
        return Change(
            job_id=message.message_id,
            order=order(headers.hop, State.QUEUED),
            state=State.RUNNING,
            at=now,
            event=f"what a run on worker {worker_name()} came to isn't recorded: another worker has the job by now",
        )
    else:
        return None
    return change
