"""Publishing to RabbitMQ, beside its limits: `python -m benchmarks.publishing`.

Quorum queues, every message confirmed, about 400 bytes each. Every round measures each row once, in turn; the table
shows medians, and the gates are ratios of rows. The C client is librabbitmq, built with gcc from
`benchmarks/c/publish.c` where both are installed (Debian: gcc librabbitmq-dev).

The rows of the driver put finished messages; `send` and `send_many` go the whole way of an application: payload,
envelope, middleware, records.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
from pika.channel import Channel

from benchmarks.job import payload
from benchmarks.systems.callboard import CallboardRabbitmq
from benchmarks.systems.dramatiq import DramatiqRabbitmqConfirmed
from callboard.brokers.driver import Outgoing
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.servers import PrivateRabbitmq

_QUEUE = "bench.publishing"
_BODY = b"x" * 400
_DEADLINE = 60.0
_SOURCE = Path(__file__).parent / "c" / "publish.c"

#: What is asked, as (a row, at least so many times, another row).
GATES = (
    ("send, 1 thread", 0.9, "dramatiq, confirms: send, 1 thread"),
    ("driver, 8 threads", 0.75, "pika, 1 thread, window of 8"),
    ("driver, 32 threads", 8.0, "driver, 1 thread"),
    ("send_many of 1000", 0.6, "C client, window of 500"),
)


class Rows:
    """What is measured: each row is a function from a number of messages to messages per second."""

    def __init__(self, node: PrivateRabbitmq, folder: Path, c_client: Path | None) -> None:
        self._url = node.add_vhost(f"bench-{uuid.uuid4().hex}")
        self._c_client = c_client
        self._number = 0
        self._driver = RabbitmqDriver(self._url)
        self._put(1)
        self._callboard = CallboardRabbitmq(folder, server_url=self._url)
        self._callboard.send(payload())
        self._dramatiq = DramatiqRabbitmqConfirmed(folder, server_url=self._url)
        self._dramatiq.send(payload())

    def close(self) -> None:
        self._driver.close()
        self._callboard.close()
        self._dramatiq.close()

    def purge(self) -> None:
        """Begin a round with empty queues."""
        for queue in (_QUEUE, "bench.medium"):
            self._driver.purge(queue)

    def all(self) -> dict[str, tuple[int, Callable[[int], float]]]:
        """Each row's part of the messages, in percent, and how it is measured."""
        rows: dict[str, tuple[int, Callable[[int], float]]] = {
            "dramatiq, confirms: send, 1 thread": (10, self._stock_sends),
            "send, 1 thread": (10, self._sends),
            "driver, 1 thread": (10, lambda count: self._threads(1, count)),
            "driver, 8 threads": (25, lambda count: self._threads(8, count)),
            "driver, 32 threads": (50, lambda count: self._threads(32, count)),
            "pika, 1 thread, window of 8": (25, self._window_of_8),
            "send_async, 32 at once": (50, self._async_sends),
            "driver, put of 1000": (100, self._puts),
            "send_many of 1000": (100, self._send_many),
        }
        if self._c_client is not None:
            rows["C client, window of 1"] = (10, lambda count: self._c(count, 1))
            rows["C client, window of 8"] = (25, lambda count: self._c(count, 8))
            rows["C client, window of 500"] = (100, lambda count: self._c(count, 500))
        return rows

    def _message(self) -> Outgoing:
        self._number += 1
        return Outgoing(_QUEUE, _BODY, f"01a20070-4ff4-7e6d-abc1-{self._number:012x}")

    def _put(self, count: int) -> None:
        self._driver.put([self._message() for _ in range(count)], deadline=_DEADLINE)

    def _threads(self, threads: int, count: int) -> float:
        messages = [[self._message() for _ in range(count // threads)] for _ in range(threads)]

        def put(mine: list[Outgoing]) -> None:
            for message in mine:
                self._driver.put([message], deadline=_DEADLINE)

        running = [threading.Thread(target=put, args=(mine,)) for mine in messages]
        return _rate(count, lambda: _run_all(running))

    def _puts(self, count: int) -> float:
        batches = [[self._message() for _ in range(1000)] for _ in range(max(1, count // 1000))]

        def put() -> None:
            for batch in batches:
                self._driver.put(batch, deadline=_DEADLINE)

        return _rate(1000 * len(batches), put)

    def _sends(self, count: int) -> float:
        return _rate(count, lambda: _repeat(count, lambda: self._callboard.send(payload())))

    def _stock_sends(self, count: int) -> float:
        return _rate(count, lambda: _repeat(count, lambda: self._dramatiq.send(payload())))

    def _send_many(self, count: int) -> float:
        jobs = [payload() for _ in range(1000)]
        calls = max(1, count // 1000)
        return _rate(1000 * calls, lambda: _repeat(calls, lambda: self._callboard.send_many(jobs)))

    def _async_sends(self, count: int) -> float:
        async def send_some() -> None:
            for _ in range(count // 32):
                await self._callboard._actor.send_async(job=payload())

        async def send_all() -> None:
            await asyncio.gather(*(send_some() for _ in range(32)))

        return _rate(count, lambda: asyncio.run(send_all()))

    def _c(self, count: int, window: int) -> float:
        url = urlsplit(self._url)
        where = [str(url.hostname), str(url.port), url.path[1:], _QUEUE, str(count), str(window)]
        answer = subprocess.run([str(self._c_client), *where], check=True, capture_output=True, text=True)
        return float(answer.stdout.split()[0])

    def _window_of_8(self, count: int) -> float:
        """pika alone: eight messages on their way, and the next for each that is confirmed, in one thread."""
        return PikaWindow(self._url, count, 8).rate()


class PikaWindow:
    """Publishes on pika's own connection, with a window and no second thread."""

    def __init__(self, url: str, count: int, window: int) -> None:
        self._count = count
        self._window = window
        self._written = 0
        self._confirmed = 0
        self._started = 0.0
        self._seconds = 0.0
        self._properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
        self._connection = pika.SelectConnection(
            pika.URLParameters(url), on_open_callback=lambda one: one.channel(on_open_callback=self._opened)
        )

    def rate(self) -> float:
        self._connection.ioloop.start()
        return self._count / self._seconds

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.confirm_delivery(self._confirm, callback=lambda _: self._begin())

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._fill()

    def _fill(self) -> None:
        while self._written < min(self._count, self._confirmed + self._window):
            self._channel.basic_publish("", _QUEUE, _BODY, self._properties, mandatory=True)
            self._written += 1

    def _confirm(self, frame: Any) -> None:
        # Confirms of several at once and of one come mixed, in order on a quorum queue.
        self._confirmed = max(self._confirmed, frame.method.delivery_tag)
        if self._confirmed < self._count:
            self._fill()
        elif not self._seconds:
            self._seconds = time.perf_counter() - self._started
            self._connection.add_on_close_callback(lambda *_: self._connection.ioloop.stop())
            self._connection.close()


def _run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()


def _rate(count: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def build_c_client(folder: Path) -> Path | None:
    """The C client, or None where gcc or librabbitmq-dev is missing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    program = folder / "publish"
    command = [compiler, "-O2", "-o", str(program), str(_SOURCE), "-lrabbitmq"]
    return program if subprocess.run(command, check=False, capture_output=True).returncode == 0 else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publishing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000, help="of the largest measurements")
    parser.add_argument("--only", default="", help="rows to measure: parts of their names, with commas")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = stack.enter_context(PrivateRabbitmq())
        c_client = build_c_client(folder)
        if c_client is None:
            print("without the C client: gcc or librabbitmq-dev is missing")
        rows = Rows(node, folder, c_client)
        stack.callback(rows.close)
        wanted = [part for part in options.only.split(",") if part]
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            rows.purge()
            for name, (percent, measure) in rows.all().items():
                if not wanted or any(part in name for part in wanted):
                    count = max(320, options.messages * percent // 100 // 32 * 32)
                    found.setdefault(name, []).append(measure(count))
    _print(found)


def _print(found: dict[str, list[float]]) -> None:
    print("\n| messages confirmed | per second | of all rounds |\n|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} |")
    print("\n| gate | asked | measured | of all rounds | |\n|---|---|---|---|---|")
    for name, asked, beside in GATES:
        if name in found and beside in found:
            ratios = [one / other for one, other in zip(found[name], found[beside], strict=True)]
            ratio = statistics.median(ratios)
            met = "met" if ratio >= asked else "not met"
            print(
                f"| {name} to {beside} | at least {asked:g} | {ratio:.2f} "
                f"| {min(ratios):.2f} to {max(ratios):.2f} | {met} |"
            )


if __name__ == "__main__":
    main()
