"""Copies of a message: a job of which there is a message too many, and how that is told.

RabbitMQ can't put a retry and take away its cause in one step, an ack is lost with its connection, and a
publish whose confirm got lost is written again. Each leaves a copy of a message whose job has gone on: it has
ended, or waits for its next attempt. The records tell, for what a claim came to is written down only when it is
safe. Such a copy goes, and the job doesn't run again for it. Where nothing is known, it runs: at least once.

Drivers whose claims are leases let go of one message and put the next in one step, and have no such copies.

Of a tick there may be copies on every driver; see `callboard.brokers.ticks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callboard.brokers import ticks
from callboard.states import State, order

if TYPE_CHECKING:
    from callboard.brokers.claim import ClaimedMessage
    from callboard.brokers.core import Core

_WRITTEN = 10.0  # seconds within which our own last records are written
_SAME_MOMENT = 0.002  # seconds; a message's time is in whole milliseconds


def may_be_copy(message: ClaimedMessage) -> bool:
    """Whether to look closer: it was delivered before, isn't the job's first message, or is of a tick, which several
    schedulers may have sent."""
    return _has_come_before(message) or message.extras.tick is not None


def _has_come_before(message: ClaimedMessage) -> bool:
    return message.delivery.redelivered or bool(message.headers.hop)


def is_overtaken(broker: Core, message: ClaimedMessage) -> bool:
    """Whether the job has gone further than this message says, so that to run it would repeat what is done.

    Raises:
        StoreUnavailable
    """
    if broker.store is None:
        return False
    if message.extras.tick is not None and ticks.is_taken(broker.store, message):
        return True
    if broker.driver.claims_are_leases or not _has_come_before(message):
        return False
    if broker.recorder is not None and message.delivery.redelivered:
        broker.recorder.flush(_WRITTEN)  # the run that went before may have been in this process
    record = broker.store.get(message.message_id)
    if record is None or record.enqueued_at is None:
        return False
    # An application may send one id twice on purpose. Then these are two jobs, with one record between them.
    same_send = abs(record.enqueued_at - message.message_timestamp / 1000) < _SAME_MOMENT
    return same_send and record.order > order(message.headers.hop, State.RUNNING)
