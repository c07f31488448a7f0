"""The event loop in which async actors run."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker
from dramatiq.asyncio import set_event_loop_thread
from dramatiq.middleware import AsyncIO

from callboard.worker.event_loop import JobLoopThread


class EventLoop(AsyncIO):
    """Dramatiq's, but its thread outlives what jobs do to it, ends with its process, and may be slow to start.

    Dramatiq's own keeps a process alive that a second SIGTERM should end; systemd sends two, one to each process
    of a service and one by way of Dramatiq's main process.
    """

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        thread = JobLoopThread(self.logger)
        thread.start(timeout=30.0)
        set_event_loop_thread(thread)
