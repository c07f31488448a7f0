"""`callboard scheduler`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from callboard.cli import early_signals
from callboard.cli.options import session
from callboard.cli.workers import Http, http_address, set_up_logging

if TYPE_CHECKING:
    from callboard.scheduler import Scheduler
    from callboard.scheduler_port import SchedulerPort
    from callboard.worker.http_server import Address

#: Seconds between two looks at who is at the port.
_TURN_SECONDS = 1.0


def scheduler(ctx: typer.Context, http: Http = None) -> None:
    """Send the jobs of schedules, in production: beside `callboard worker`, which runs them.

    Any number may run: each tick makes one job. SIGTERM and Ctrl-C end it. `callboard dev` has one of its own.
    """
    from callboard.brokers.ticks import scheduled_actors
    from callboard.cli import output
    from callboard.cli.exits import ExitCode
    from callboard.scheduler import Scheduler
    from callboard.settings import Settings

    set_up_logging()
    address = http_address(http if http is not None else Settings.load().scheduler_http)
    with _told_to_stop() as orders, session(ctx).broker(quiet=False) as broker:
        if not scheduled_actors(broker):
            output.note("No actor has a schedule, so there is nothing to send: @actor(periodic=cron(...)).")
            raise typer.Exit(ExitCode.NOT_FOUND)
        scheduler = Scheduler(broker)
        with _port(address, scheduler) as port:
            _run(scheduler.run, lambda: _wait(orders, port))


@contextmanager
def _port(address: Address | None, scheduler: Scheduler) -> Iterator[SchedulerPort | None]:
    """The scheduler's port, if it is to have one."""
    if address is None:
        yield None
        return
    from callboard.scheduler_port import SchedulerPort
    from callboard.worker.totals import Totals

    jobs = Totals(1)
    jobs.join(0)
    port = SchedulerPort(address, scheduler.progress, jobs=jobs)
    try:
        yield port
    finally:
        port.close()


def _wait(orders: int, port: SchedulerPort | None) -> None:
    """Serve the port until there are orders to read."""
    while port is not None and not port.wait([orders], _TURN_SECONDS):
        pass
    os.read(orders, 1)


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
def _told_to_stop() -> Iterator[int]:
    """Have SIGTERM and SIGINT be told through a file, which can then be read, in place of ending the process.

    An event can't be set in a signal's handler: the thread that it interrupts may hold the event's lock.
    """
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    fd_before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    early_signals.let_through()
    try:
        yield awake
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(awake)
        os.close(waker)
