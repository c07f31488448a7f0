"""An application whose jobs are isolated, and do their worst. Tests import it from a folder of their own."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from callboard import ActorDecorator, Isolation, Permanent, RetryPolicy, Snooze, current_job
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.metrics import Metrics
from callboard.store import open_store
from middleware import stack

FOLDER = os.environ["ISOLATED_FOLDER"]
store = open_store(f"file:{FOLDER}")
broker = Broker(
    open_driver(f"file:{FOLDER}"),
    store=store,
    middleware=stack(store, metrics=Metrics(CollectorRegistry())),
    one_host=True,
)
actor = ActorDecorator(broker)

AT_ONCE = RetryPolicy(attempts=2, base=timedelta(milliseconds=1), jitter=False)


class Strange(Exception):
    """It can't be made without arguments, said, or pickled."""

    def __init__(self, first: int, second: object) -> None:
        super().__init__(first)
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no")


class Fleeting(Exception):
    retry_after = 0.0


def note(text: str) -> None:
    descriptor = os.open(f"{FOLDER}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


@actor(isolated=True, store_results=True, retries=0)
def describe(numbers: list[int], moment: timedelta) -> dict[str, Any]:
    job = current_job()
    assert job.deadline is not None
    return {
        "sum": sum(numbers),
        "moment": moment.total_seconds(),
        "id": job.id,
        "attempt": job.attempt,
        "tags": list(job.tags),
        "queue": job.queue,
        "pid": os.getpid(),
    }


@actor(isolated=True, store_results=True, retries=0)
async def wait_a_little(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@actor(isolated=True, retries=0, time_limit=timedelta(seconds=0.5))
async def wait_for_ever() -> None:
    await asyncio.sleep(3_600)


@actor(isolated=True, retries=0)
def report(gate: str) -> None:
    current_job().progress(0.5, "half of it")
    current_job().log.warning("so far so good")
    _wait_for(gate)


@actor(isolated=True, retries=AT_ONCE)
def resume() -> None:
    job = current_job()
    before = job.last_checkpoint()
    note(f"resume {json.dumps(before)}")
    if before is None:
        job.checkpoint({"done": 7})
        os._exit(3)


@actor(isolated=True, retries=3)
def stop_for_good() -> None:
    raise Permanent("never again")


@actor(isolated=True, retries=0)
def come_back() -> None:
    raise Snooze(timedelta(hours=1), "too early")


@actor(isolated=True, retries=RetryPolicy(attempts=3, never_retry=(LookupError,)))
def look_up() -> None:
    os.environ["NO_SUCH_VARIABLE"]


@actor(isolated=True, retries=AT_ONCE)
def fail_fleetingly() -> None:
    note("fleeting")
    raise Fleeting("for a moment")


@actor(isolated=True, retries=0)
def fail_strangely() -> None:
    raise Strange(1, object())


@actor(isolated=True, retries=0)
def fail_with_a_cause() -> None:
    try:
        int("seven")
    except ValueError as error:
        raise RuntimeError("no number") from error


@actor(isolated=True, retries=0)
def leave(how: str) -> None:
    if how == "sys.exit":
        sys.exit(3)
    elif how == "os._exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "close":
        os.closerange(3, 256)
    elif how == "spoil":
        for number in range(3, 64):
            try:
                os.write(number, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(3_600)


@actor(isolated=True, retries=0)
def hold_the_gil(seconds: int) -> None:
    note(f"holding {os.getpid()}")
    ctypes.PyDLL(None).sleep(seconds)
    note("held")


@actor(isolated=True, retries=0, time_limit=timedelta(seconds=1))
def hold_the_gil_for_too_long() -> None:
    ctypes.PyDLL(None).sleep(60)


@actor(isolated=True, retries=0, time_limit=timedelta(seconds=0.5))
def sleep_for_too_long() -> None:
    time.sleep(60)


@actor(isolated=True, retries=0, time_limit=timedelta(seconds=0.5))
def refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


@actor(isolated=Isolation(memory="300MiB"), retries=0)
def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(16 * 1024 * 1024))
        time.sleep(0.01)


@actor(isolated=True, retries=0)
def stay(gate: str) -> None:
    note(f"staying {os.getpid()}")
    _wait_for(gate)
    note("stayed")


@actor(isolated=True, retries=0)
def stay_till_cancelled() -> None:
    note("staying")
    while not current_job().cancelled():
        time.sleep(0.01)
    note("saw the flag")
    current_job().stop_if_cancelled()


@actor(isolated=True, retries=0, cancel_grace=timedelta(seconds=0.2))
def stay_though_cancelled() -> None:
    note("staying")
    ctypes.PyDLL(None).sleep(60)


@actor(isolated=True, retries=0)
def fork_inside() -> None:
    if os.fork() == 0:
        return  # the new process comes out of the body, too
    note("forked")


@actor(isolated=True, retries=0)
def leave_a_process_behind() -> None:
    if (pid := os.fork()) == 0:
        time.sleep(3_600)
        os._exit(0)
    note(f"left {pid}")
    os._exit(1)


@actor(isolated=True, retries=0)
def flood_the_log(lines: int) -> None:
    for number in range(lines):
        current_job().log.error("a line", number=number)


@actor(isolated=True, store_results=True, retries=3)
def return_too_much() -> str:
    return "x" * (17 * 1024 * 1024)


@actor(isolated=Isolation(max_jobs=1), store_results=True, retries=0)
def tell_pid_once() -> int:
    return os.getpid()


@actor(retries=0, store_results=True)
def work_beside() -> int:
    return os.getpid()


def _wait_for(gate: str) -> None:
    while not Path(gate).exists():
        time.sleep(0.01)
