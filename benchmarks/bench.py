"""One run: which systems are measured, how often, how much, and on which servers."""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.job import Counter
from benchmarks.systems import System, Workers, wait_until
from callboard.servers import PrivateRabbitmq, PrivateRedis, PrivateServer, ServerMissing

S = TypeVar("S", bound=System)

SERVERS: dict[str, Callable[[], PrivateServer]] = {
    "rabbitmq": PrivateRabbitmq,
    "redis": lambda: PrivateRedis(append_only=True, options={"databases": "100"}),  # fsynced once a second
}

PATIENCE = 120.0


class Bench:
    """Gives a measurement what it needs. Use it in a `with` block: it ends the servers that it started.

    Args:
        rounds: How often each system is measured, in turn.
        only: Parts of names; systems whose names contain none of them are left out. None leaves out none.
        quick: Measure a tenth, to see that it works.

    Attributes:
        rounds: As given.
        quick: As given.
        missing: Sentences about what couldn't be measured.
    """

    def __init__(self, *, rounds: int = 3, only: Sequence[str] = (), quick: bool = False) -> None:
        self.rounds = rounds
        self.quick = quick
        self.missing: list[str] = []
        self._only = [part.lower() for part in only]
        self._servers: dict[str, PrivateServer | None] = {}
        self._open = self._opened = 0  # blocks of `fresh`, now and since there was none
        self._stack = ExitStack()
        self._began = time.monotonic()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def size(self, count: int, quick: int | None = None) -> int:
        """How many to measure: a tenth of them when it should be quick, or what is given."""
        return (count // 10 if quick is None else quick) if self.quick else count

    def systems(self, classes: Iterable[type[S]]) -> list[type[S]]:
        """Those of the systems that are wanted and can be measured here."""
        return [one for one in classes if self._wanted(one) and self._possible(one)]

    def _wanted(self, system: type[System]) -> bool:
        return not self._only or any(part in system.name.lower() for part in self._only)

    def _possible(self, system: type[System]) -> bool:
        reason = system.missing()
        if reason is None and system.server is not None and self.server(system) is None:
            return False  # said when it wasn't found
        if reason is not None and reason not in self.missing:
            self.missing.append(reason)
            self.say(reason)
        return reason is None

    def server(self, system: type[System]) -> PrivateServer | None:
        """The server of a system, started when it is first asked for."""
        name = system.server
        if name is None:
            return None
        if name not in self._servers:
            self._servers[name] = None
            try:
                server = SERVERS[name]()
            except ServerMissing as missing:
                self.missing.append(f"Without {name}: {missing}.")
                self.say(self.missing[-1])
            else:
                self._stack.callback(server.close)
                self._servers[name] = server.start()
        return self._servers[name]

    @contextmanager
    def fresh(self, system_class: type[S], *, queues: int = 1) -> Iterator[S]:
        """A system with empty queues, which are gone after the block."""
        server = self.server(system_class)
        self._open += 1
        self._opened += 1
        vhost = f"bench-{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
            url = server.url if server is not None else ""
            if isinstance(server, PrivateRabbitmq):
                url = server.add_vhost(vhost)
            if isinstance(server, PrivateRedis):
                url = url.removesuffix("0") + str(self._opened - 1)
            try:
                system = system_class(Path(folder), server_url=url, queues=queues)
                try:
                    yield system
                finally:
                    system.close()
            finally:
                self._open -= 1
                if isinstance(server, PrivateRabbitmq):
                    server.delete_vhost(vhost)
                if not self._open:  # an inner block leaves to the outer one what is its own
                    self._opened = 0
                    if isinstance(server, PrivateRedis):
                        server.empty()

    def say(self, sentence: str) -> None:
        """Tell who watches how far it is."""
        print(f"{time.monotonic() - self._began:4.0f} s  {sentence}", file=sys.stderr, flush=True)


def run_out(
    counter: Counter, workers: Workers, *, warm: int, total: int, most_seconds: float
) -> tuple[int, float, float]:
    """How many jobs ran in how many seconds with how much CPU, after so many to warm up.

    It ends with the last of them, or after so many seconds.
    """
    wait_until(lambda: counter.total() >= warm, seconds=PATIENCE, what="the start", workers=workers)
    first, cpu, started = counter.total(), workers.cpu_seconds(), time.perf_counter()
    end = started + most_seconds
    wait_until(
        lambda: counter.total() >= total or time.perf_counter() >= end,
        seconds=PATIENCE,
        what="the backlog",
        workers=workers,
    )
    ran, seconds = counter.total() - first, time.perf_counter() - started
    if ran <= 0:
        raise RuntimeError(f"no job ran within {seconds:.0f} s")
    return ran, seconds, workers.cpu_seconds() - cpu


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted numbers, the one below which so many lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
