"""What surrounds every job, in order: the first is the outermost.

Before a run the hooks go down this list, after it they come back up. So what decides a job's fate stands
at the bottom, and what tells of it at the top.
"""

from __future__ import annotations

from datetime import timedelta

from dramatiq import Middleware
from dramatiq.middleware import GroupCallbacks
from dramatiq.results import Results

from callboard.metrics import Metrics
from callboard.store.base import Store
from callboard.store.rate_limits import StoreRateLimiterBackend
from callboard.store.results import StoreResultBackend
from middleware.callbacks import Callbacks
from middleware.cancellation import Cancellation
from middleware.concurrency_limits import ConcurrencyLimits
from middleware.current_job import CurrentJob
from middleware.dead_letters import DeadLetters
from middleware.event_loop import EventLoop
from middleware.expiry import Expiry
from middleware.heartbeats import Heartbeats
from middleware.isolated_runs import IsolatedRuns
from middleware.job_logging import JobLogging
from middleware.job_metrics import JobMetrics
from middleware.periodic import Periodic
from middleware.pipelines import Pipelines
from middleware.rate_limits import RateLimits
from middleware.records import Records
from middleware.retention import Retention
from middleware.retries import Retries
from middleware.time_limits import TimeLimits


def stack(
    store: Store,
    *,
    metrics: Metrics | None = None,
    keep: timedelta = timedelta(days=30),
    keep_most: int = 1_000_000,
) -> list[Middleware]:
    """The stack. Takes the store for what Dramatiq's own classes keep there: results and group barriers."""
    return [
        JobLogging(),  # outermost: it tells of what all the others decided
        Records(),  # sees the final disposition, after everyone has had a say
        Retention(
            keep=keep, keep_most=keep_most
        ),  # beside the records that it removes; has no part in any run
        Heartbeats(),  # says which worker lives, and what it runs
        EventLoop(),  # the event loop of async actors, before any job can start
        Cancellation(),  # a cancelled job must not start, so it stands before all that prepares a run
        Expiry(),  # and so must an expired one
        ConcurrencyLimits(),  # one that has to wait for a place starts later
        RateLimits(),  # last: a start that is reserved should not be lost to another wait
        JobMetrics(metrics or Metrics()),  # counts as started what gets this far
        # Dramatiq's, of its exact class: it looks for that
        Results(backend=StoreResultBackend(store)),  # type: ignore[no-untyped-call]  # it has no annotations
        GroupCallbacks(StoreRateLimiterBackend(store)),  # Dramatiq's: what follows a run comes after its fate
        Callbacks(),  # Dramatiq's, but only a failure is told as one
        Pipelines(),  # Dramatiq's, but a result that is a mapping becomes part of the next payload
        Periodic(),  # declares the options of scheduled jobs
        CurrentJob(),  # the run exists from here on
        IsolatedRuns(),  # so that it can be moved to another process
        TimeLimits(),  # so that its limit can reach it
        DeadLetters(),  # what isn't tried again is dead
        Retries(),  # innermost: the first to see how a run ended
    ]


__all__ = ["stack"]
