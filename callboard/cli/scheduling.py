"""`callboard scheduler`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from callboard.cli import early_signals
from callboard.cli.options import session
from callboard.cli.workers import set_up_logging


def scheduler(ctx: typer.Context) -> None:
    """Send the jobs of schedules, in production: beside `callboard worker`, which runs them.

    Any number may run: each tick makes one job. SIGTERM and Ctrl-C end it. `callboard dev` has one of its own.
    """
    from callboard.brokers.ticks import scheduled_actors
    from callboard.cli import output
    from callboard.cli.exits import ExitCode
    from callboard.scheduler import run_scheduler

    set_up_logging()
    with _told_to_stop() as wait, session(ctx).broker(quiet=False) as broker:
        if not scheduled_actors(broker):
            output.note("No actor has a schedule, so there is nothing to send: @actor(periodic=cron(...)).")
            raise typer.Exit(ExitCode.NOT_FOUND)
        _run(lambda stop: run_scheduler(broker, stop), wait)


def _run(work: Callable[[threading.Event], None], wait: Callable[[], object]) -> None:
    """Run something in a thread until it is told to stop, or fails."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def main() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            failures.append(error)
            signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=main, name="callboard-scheduler")
    thread.start()
    wait()
    stop.set()
    thread.join()
    for failure in failures:
        raise failure


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bytes]]:
    """Have SIGTERM and SIGINT end a wait, in place of the process.

    An event can't be set in a signal's handler: the thread that it interrupts may hold the event's lock.
    """
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    fd_before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    early_signals.let_through()
    try:
        yield lambda: os.read(awake, 1)
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(awake)
        os.close(waker)
