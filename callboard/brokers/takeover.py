"""What Dramatiq's own worker needs to keep our promises: its work queue is replaced at boot.

Stock orders what it has fetched by the actor's priority, starts it even if its queue is paused meanwhile, and
holds what it hasn't started until it exits. Here a message's own priority counts, and what is paused or can't
be started any more goes back to the broker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from queue import Empty, PriorityQueue
from typing import TYPE_CHECKING, Any

from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.consumer import Consumer
from callboard.queues import priority_of

if TYPE_CHECKING:
    from dramatiq import Worker

    from callboard.brokers.base import Broker
    from callboard.store.base import Control


class _ByOwnPriority(PriorityQueue[Any]):
    """Dramatiq's work items, by the priority of the queue each came from, then by age."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self._broker = broker
        self._ages = itertools.count()
        self.closed = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.closed and isinstance(item.message, ClaimedMessage):
            item.message.intake.give_back([item.message.delivery])
            return
        super().put((priority_of(item.message.queue_name), next(self._ages), item), block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        while True:
            item = super().get(block, timeout)[2]
            message = item.message
            if not (isinstance(message, ClaimedMessage) and self._broker.is_paused(message.queue_name)):
                return item
            message.intake.give_back([message.delivery])
            self.task_done()


def take_over(worker: Worker, broker: Broker) -> None:
    """Give a worker that hasn't booted a work queue of ours, and have it learn of pauses."""
    worker.work_queue = _ByOwnPriority(broker)
    if broker.control is not None:
        broker.control.on_change = lambda control: _tell(worker, control)


def _tell(worker: Worker, control: Control) -> None:
    for consumer in _consumers(worker):
        consumer.wake()


def _consumers(worker: Worker) -> Iterator[Consumer]:
    for thread in list(worker.consumers.values()):
        if isinstance(thread.consumer, Consumer):
            yield thread.consumer


def give_back_unstarted(worker: Worker, broker: Broker) -> None:
    """Make what the worker has fetched and not started ready for others, and let it claim nothing more."""
    work = worker.work_queue
    if broker.control is not None:
        broker.control.on_change = None
    for consumer in _consumers(worker):
        consumer.stop_claiming()
    if not isinstance(work, _ByOwnPriority):
        return
    work.closed = True
    while True:
        try:
            item = work.get(block=False)
        except Empty:
            return
        if isinstance(item.message, ClaimedMessage):
            item.message.intake.give_back([item.message.delivery])
        work.task_done()
