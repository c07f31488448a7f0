"""How a test fails that its jobs fail: with the exception of the job, in the job's own lines."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from dramatiq.middleware import Interrupt

from callboard.errors import CallboardError
from callboard.testing.drained import Drained
from callboard.worker.inline import JobRun


class JobDied(CallboardError, AssertionError):
    """A job died of no exception of its own; the message says which one and why."""


class NeverDrained(CallboardError, AssertionError):
    """Jobs still waited after `max_jobs` runs; the message says which ran last."""


class NeverCrashed(CallboardError, AssertionError):
    """No job came to the point at which the worker was to be killed."""


def check(run: JobRun, *, fail: bool) -> None:
    """Let a run fail the test, if it has to; with `fail`, a death has to."""
    __tracebackhide__ = True
    error = run.error
    if error is not None and not isinstance(error, Exception | Interrupt):
        raise _own_error(run, error)  # Ctrl-C, or pytest.fail() in a fake
    if not fail or run.outcome not in ("dead", "quarantined"):
        return
    if error is not None:
        raise _own_error(run, error)
    who = f"job {run.job_id} of '{run.actor}'" if run.job_id else "a message"
    hint = "; import the module that declares it" if "no worker here knows" in run.reason else ""
    raise JobDied(f"{who} is {run.outcome}: {run.reason}{hint}")


def check_success(run: JobRun) -> None:
    """Let a run fail the test unless it succeeded, be it that the worker was killed then."""
    __tracebackhide__ = True
    if run.error is not None:
        raise _own_error(run, run.error)
    if run.outcome not in ("succeeded", "crashed"):
        raise JobDied(f"job {run.job_id} of '{run.actor}' was to succeed, and is {run.outcome}: {run.reason}")


def endless(drained: Drained, max_jobs: int) -> NeverDrained:
    """There was something to run after all these runs, too."""
    last = Counter(run.actor for run in drained.runs[-100:])
    culprits = ", ".join(f"{n} of '{name}'" for name, n in last.most_common(3))
    return NeverDrained(
        f"there was still something to run after {max_jobs} runs ({drained!r}), and the last were {culprits}. "
        "Does a job send itself again, or snooze for ever? Then let less time pass with until=; "
        "if all is well, pass a higher max_jobs="
    )


def _own_error(run: JobRun, error: BaseException) -> BaseException:
    """A job's exception, with the traceback of the job's own frames."""
    note = f"raised by '{run.actor}', attempt {run.attempt} of job {run.job_id}: {run.outcome}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error.with_traceback(_own_frames(error.__traceback__))


def _own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that lead from the worker to the job."""
    machinery = ("callboard", "dramatiq", "asyncio", "concurrent", "threading")
    found = traceback
    while found is not None:
        if found.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in machinery:
            return found
        found = found.tb_next
    return traceback
