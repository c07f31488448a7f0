"""What Dramatiq's own worker needs to keep our promises: its work queue is replaced at boot.

Stock orders what it has fetched by the actor's priority, and holds what it hasn't started until it exits.
Here a message's own priority counts, and at a shutdown unstarted messages go back to the broker at once.
"""

from __future__ import annotations

import itertools
from queue import Empty, PriorityQueue
from typing import TYPE_CHECKING, Any

from callboard.brokers.claim import ClaimedMessage
from callboard.brokers.consumer import Consumer
from callboard.queues import priority_of

if TYPE_CHECKING:
    from dramatiq import Worker


class _ByOwnPriority(PriorityQueue[Any]):
    """Dramatiq's work items, by the priority of the queue each came from, then by age."""

    def __init__(self) -> None:
        super().__init__()
        self._ages = itertools.count()
        self.closed = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.closed and isinstance(item.message, ClaimedMessage):
            item.message.intake.give_back([item.message.delivery])
            return
        super().put((priority_of(item.message.queue_name), next(self._ages), item), block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block, timeout)[2]


def take_over(worker: Worker) -> None:
    """Give a worker that hasn't booted a work queue of ours."""
    worker.work_queue = _ByOwnPriority()


def give_back_unstarted(worker: Worker) -> None:
    """Make what the worker has fetched and not started ready for others, and let it claim nothing more."""
    work = worker.work_queue
    for thread in list(worker.consumers.values()):
        if isinstance(thread.consumer, Consumer):
            thread.consumer.stop_claiming()
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
