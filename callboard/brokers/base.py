"""The broker: the rules that hold on every driver.

The life of a message here:

- `enqueue` checks it (payload, id, size), runs the enqueue hooks, signs it and puts it: when it returns,
  the job is safe. When it raises, it says whether the job may be queued all the same.
- `receive` reads it strictly. What can't be read or trusted goes to quarantine; what this worker doesn't
  know is parked, which is a delay with a reason; a claim that is gone is dropped.
- The worker runs it between the hooks of the middleware. A hook that fails makes the job come again,
  uncounted: never run unguarded, never lost, never in a hot loop.
- `settle` does what the disposition says. Whatever moves a message on is confirmed before the claim is
  let go; while that can't be had, the claim is kept.

Dramatiq's own worker swallows the failures of hooks and then acks. So the safety lies here and in the
consumer, and holds under both workers.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.errors import QueueJoinTimeout

from callboard.brokers.consumer import Consumer
from callboard.brokers.receiving import Receiving
from callboard.brokers.sending import Sending
from callboard.brokers.settling import checkpoint_key
from callboard.brokers.takeover import give_back_unstarted, take_over
from callboard.brokers.ticks import Ticks
from callboard.context import Run
from callboard.errors import StoreUnavailable
from callboard.process import worker_name
from callboard.states import State
from callboard.store.base import Change

if TYPE_CHECKING:
    from dramatiq import Message

    from callboard.actor import JobActor

_CHECKPOINT_SECONDS = timedelta(days=30).total_seconds()


class Broker(Sending, Receiving):
    """A Dramatiq broker that keeps Callboard's promises, on any driver.

    Args:
        driver: Where messages wait.
        store: What is known about jobs; without one nothing is recorded.
        middleware: What surrounds every job, outermost first.
        send_deadline: Seconds within which a send is confirmed, or raises.
        max_message_bytes: The largest message that a send accepts.
        park_deadline: Seconds that a job waits for a worker that knows it, before it is dead.
        signer: Signs what is sent, and distrusts what isn't signed.
        one_host: Whether all processes that use this broker run on this host.
        clock: Seconds since the epoch.

    Raises:
        SettingsError: Other hosts can reach the messages, and not the store.
    """

    # -- at a worker's boot and shutdown -------------------------------------------------------------------

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_before(signal, *args, **kwargs)
        if signal == "worker_boot":
            self.stopping.clear()
            if self.control is not None:
                self.control.start()
            if isinstance(args[0], dramatiq.Worker):
                take_over(args[0], self)
        elif signal == "worker_shutdown":
            self.stopping.set()
            if isinstance(args[0], dramatiq.Worker):
                give_back_unstarted(args[0], self)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """What Dramatiq's own worker reads a queue with."""
        intake = self.open_intake([queue_name], budget=prefetch)
        return Consumer(self, intake, queue=queue_name, prefetch=prefetch, timeout=timeout / 1000)

    # -- schedules -------------------------------------------------------------------------------------------

    def ticks(self) -> Ticks:
        """What serves the ticks of this broker's schedules; each thread needs its own."""
        return Ticks(self, deadline=self._send_deadline)

    def send_tick(self, actor: JobActor[..., Any], moment: datetime) -> Message[Any]:
        """Send the job of a schedule's tick at or before a moment, unless it is sent; see `Ticks.serve`."""
        return self.ticks().serve(actor, moment)

    # -- what a run reports (see `callboard.context.Reporter`) -----------------------------------------------

    def report_progress(self, run: Run, fraction: float | None, note: str) -> None:
        """Record how far a run is."""
        if self.recorder is not None:
            self.recorder.record(
                Change(
                    job_id=run.id,
                    order=run.order,
                    state=State.RUNNING,
                    at=self.clock(),
                    progress=fraction,
                    progress_note=note or None,
                )
            )

    def report_event(self, run: Run, text: str) -> None:
        """Add a line to a running job's story."""
        if self.recorder is not None:
            self.recorder.record(
                Change(
                    job_id=run.id,
                    order=run.order,
                    state=State.RUNNING,
                    at=self.clock(),
                    attempt=run.attempt,
                    worker=worker_name(),
                    event=text,
                )
            )

    def is_cancelled(self, job_id: str) -> bool:
        """Whether a job is to stop, as far as this process knows; it learns within a second."""
        return self.control is not None and job_id in self.control.cancelled

    def is_paused(self, queue_name: str) -> bool:
        """Whether nothing is to be claimed from a queue, as far as this process knows."""
        return self.control is not None and queue_name in self.control.paused

    def save_checkpoint(self, job_id: str, state: bytes) -> None:
        """Keep a run's state for the next run."""
        if self.store is None:
            raise StoreUnavailable("checkpoints need a store, and this broker has none")
        self.store.put_result(checkpoint_key(job_id), state, ttl=_CHECKPOINT_SECONDS)
        self.with_checkpoint.add(job_id)

    def load_checkpoint(self, job_id: str) -> bytes | None:
        """The state that an earlier run kept."""
        state = self.store.get_result(checkpoint_key(job_id)) if self.store is not None else None
        if state is not None:
            self.with_checkpoint.add(job_id)
        return state

    # -- the rest of Dramatiq's interface ------------------------------------------------------------------

    def flush(self, queue_name: str) -> None:
        """Drop all that waits in a queue. For tests; people purge with `callboard queues purge`."""
        self.driver.purge(queue_name)

    def flush_all(self) -> None:
        """Drop all that waits in all declared queues. For tests."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until a queue is empty and none of its jobs runs. For tests.

        Raises:
            QueueJoinTimeout: After `timeout` milliseconds.
        """
        end = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            counts = self.driver.counts([queue_name])[queue_name]
            if not (counts.ready or counts.claimed or counts.delayed):
                return
            if end is not None and time.monotonic() > end:
                raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]
            time.sleep(0.01)

    def close(self) -> None:
        """Write what is still to be recorded, and let go of connections and files."""
        self.stopping.set()
        if self.control is not None:
            self.control.stop()
        if not self.running:  # the claims of jobs that run on end with the process, not before
            self.driver.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.store is not None:
            self.store.close()
