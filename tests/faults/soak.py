"""`make test-faults`: random faults for many minutes, one driver after the other, and the ledger of it all.

    python -m tests.faults.soak                           ten minutes in all, on file, redis and rabbitmq
    python -m tests.faults.soak --minutes 60 --only redis
    python -m tests.faults.soak --seed 4711               what run 4711 did: the same faults in the same order

A round is a fresh broker, a worker of three processes, two producers, some of whose jobs are isolated, and two
schedulers of two schedules that are due every second. They suffer one fault after another, drawn by the round's seed.
Then everything that was sent has to come to its end, and each tick has to be a job that did, or to be recorded as
missed. The exit code is 1 if anything was lost or ran twice at once, if a tick is missing or was two jobs, or if a
round didn't come to its end; the folder of such a round is kept.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from callboard import dead_letter
from callboard.brokers import open_driver
from callboard.errors import StoreUnavailable
from callboard.servers import PrivateRabbitmq, PrivateRedis
from callboard.servers.proxy import FaultProxy
from callboard.store import open_store
from callboard.store.base import Store
from tests.faults.ledger import Ledger, Processes, Run, environment_in, until
from tests.faults.tick_ledger import TickLedger

PATIENCE = 120.0  # seconds that a start or the backlog of a round may take
ROUND = 60.0  # seconds of faults in a round
ACK = 0.2  # seconds after a run's end in which its ack may get lost
LONG = "0.003"  # share of the jobs that run for up to two seconds, so that leases and graces matter
APART = "0.03"  # share of the jobs that are isolated
SCHEDULES = ("pulse-a", "pulse-b")


@dataclass
class Fault:
    """One that was done: when it began and ended, by the monotonic clock."""

    name: str
    begin: float
    end: float


@dataclass
class Found:
    """What a round, or several, came to."""

    seconds: float = 0.0
    sent: int = 0
    raised: int = 0
    runs: int = 0
    lost: int = 0
    at_once: int = 0
    again: int = 0
    ticks: int = 0
    ticks_told: int = 0
    ticks_missed: int = 0
    ticks_doubled: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    why_again: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest_pause: float = 0.0
    paused_by: str = ""

    def add(self, other: Found) -> None:
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dead", "why_again", "faults"):
            getattr(self, name).update(getattr(other, name))
        if other.longest_pause > self.longest_pause:
            self.longest_pause, self.paused_by = other.longest_pause, other.paused_by

    @property
    def is_flawless(self) -> bool:
        return not (self.lost or self.at_once or self.ticks_missed or self.ticks_doubled)

    def __str__(self) -> str:
        lines = [
            ("seconds", f"{self.seconds:.0f}"),
            ("faults", f"{self.faults.total()} ({_listed(self.faults)})"),
            ("jobs sent", f"{self.sent:,}, and {self.raised} sends that raised"),
            ("runs", f"{self.runs:,}"),
            ("lost", f"{self.lost}"),
            ("run twice at once", f"{self.at_once}"),
            ("run again", f"{self.again} ({_listed(self.why_again)})"),
            ("ticks", f"{self.ticks:,}, {self.ticks_told} of them recorded as missed"),
            ("ticks missed", f"{self.ticks_missed} without a record"),
            ("ticks doubled", f"{self.ticks_doubled}"),
            ("dead", f"{self.dead.total()} ({_listed(self.dead)})"),
            ("longest pause", f"{self.longest_pause:.1f} s ({self.paused_by})"),
        ]
        return "\n".join(f"  {name:<18} {value}" for name, value in lines)


_SUMMED = [of.name for of in fields(Found) if of.type in ("int", "float") and of.name != "longest_pause"]


def _listed(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items())) or "none"


# -- the drivers, and what each can suffer ----------------------------------------------------------------


class Stage(ABC):
    """A broker, a store, and who works with them.

    A fault is a method; it comes back when it is over. What follows it is left to the processes.
    """

    #: The faults that any driver can suffer; a subclass adds its own.
    faults: ClassVar[tuple[str, ...]] = (
        "kill_a_process",
        "kill_a_process",
        "kill_an_isolated_job",
        "kill_a_scheduler",
        "freeze_a_scheduler",
        "kill_the_supervisor",
        "freeze_a_process",
        "freeze_a_producer",
        "reload_by_sighup",
        "deploy_by_sigterm",
        "block_the_store",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chance = random.Random(0)
        self.ledger = Ledger(folder)
        self.processes = Processes(environment_in(folder, LEDGER_LONG=LONG, LEDGER_APART=APART), self.ledger)
        self._open = ExitStack()

    def __enter__(self) -> Stage:
        with ExitStack() as opening:
            opening.callback(self._open.close)
            self.set_up(self._open)
            opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self.processes.stop()

    @abstractmethod
    def set_up(self, opened: ExitStack) -> None:
        """Start the servers."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The broker's, for whoever has no part in the faults."""

    @property
    def worker_url(self) -> str:
        return self.url

    @property
    def producer_url(self) -> str:
        return self.url

    @property
    def store_url(self) -> str:
        return self.processes.environment["CALLBOARD_STORE_URL"]

    def begin(self) -> TickLedger:
        """Start everybody; returns the ledger of the ticks from then on."""
        self.processes.start_worker(self.worker_url)
        for name in ("1", "2"):
            self.processes.start_scheduler(name, self.producer_url)
        for name in ("a", "b"):
            self.processes.start_producer(name, self.producer_url)
        until(lambda: len(self.ledger.ended()) > 50, seconds=PATIENCE, what="the start")
        with closing(open_store(self.store_url)) as store:
            until(
                lambda: TickLedger.have_begun(SCHEDULES, store), seconds=PATIENCE, what="the schedules' start"
            )
            return TickLedger(self.folder, SCHEDULES, store)

    def finish(self, ticks: TickLedger) -> None:
        """Send nothing more, and have the ticks until now dealt with."""
        self.processes.enough()
        ticks.close()
        with closing(open_store(self.store_url)) as store:
            until(lambda: _is_served(ticks, store), seconds=PATIENCE, what="the last ticks")
        self.processes.stop_schedulers()

    def dead(self) -> list[tuple[str, str]]:
        """The jobs that died, and of what."""
        with closing(open_driver(self.url, folder=self.folder)) as driver:
            letters = [dead_letter.decode(stored.body) for stored in driver.peek("ledger.dead", limit=1_000)]
        return [(letter.job_id, letter.reason) for letter in letters]

    # -- processes

    def kill_a_process(self) -> None:
        if self.ledger.working_pids():
            self.processes.kill_one(self.chance)
        self.processes.revive_producers()

    def kill_an_isolated_job(self) -> None:
        """Which is a failure of that job, if one runs there."""
        if pids := self.ledger.isolated_pids():
            self.ledger.kill(self.chance.choice(pids))

    def kill_a_scheduler(self) -> None:
        """One, or both; then for a while there are fewer."""
        names = self.chance.choice((["1"], ["2"], ["1", "2"]))
        for name in names:
            self.processes.schedulers[name].kill()
            self.processes.schedulers[name].wait()
        time.sleep(self.chance.uniform(0, 4))
        for name in names:
            self.processes.start_scheduler(name, self.producer_url)

    def freeze_a_scheduler(self) -> None:
        self._freeze(self.chance.choice([p.pid for p in self.processes.schedulers.values()]))

    def kill_the_supervisor(self) -> None:
        """Its processes end by themselves, and give back what they have."""
        worker = self.processes.worker
        assert worker is not None
        worker.kill()
        worker.wait()
        self.processes.start_another_worker(self.worker_url)

    def freeze_a_process(self) -> None:
        if pids := self.ledger.working_pids():
            self._freeze(self.chance.choice(pids))

    def freeze_a_producer(self) -> None:
        self._freeze(self.chance.choice([p.pid for p in self.processes.producers.values()]))

    def _freeze(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.1, 8))
            os.kill(pid, signal.SIGCONT)

    def reload_by_sighup(self) -> None:
        assert self.processes.worker is not None
        self.processes.worker.send_signal(signal.SIGHUP)

    def deploy_by_sigterm(self) -> None:
        self.processes.deploy(self.worker_url)

    def block_the_store(self) -> None:
        """Somebody else writes to its file for a while."""
        with closing(
            sqlite3.connect(self.folder / "store.db", timeout=30, isolation_level=None)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self.chance.uniform(0.1, 5))
            connection.execute("ROLLBACK")


def _is_served(ticks: TickLedger, store: Store) -> bool:
    try:
        return ticks.is_served(store)
    except StoreUnavailable:  # it was only just started again
        return False


class FileStage(Stage):
    """Everything in the folder."""

    faults = (*Stage.faults, "hold_the_writers_lock")

    def set_up(self, opened: ExitStack) -> None:
        pass

    @property
    def url(self) -> str:
        return f"file:{self.folder}"

    def hold_the_writers_lock(self) -> None:
        """Somebody else writes to the queue's file for a while."""
        with closing(
            sqlite3.connect(self.folder / "queue.db", timeout=30, isolation_level=None)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self.chance.uniform(0.1, 2))
            connection.execute("ROLLBACK")


class NetworkStage(Stage):
    """A server of its own, behind a proxy for the worker and another for the producers."""

    faults = (
        *Stage.faults,
        "restart_the_broker",
        "cut_connections",
        "refuse_connections",
        "stall_connections",
        "slow_connections",
        "forget_connections",
    )
    server: PrivateRabbitmq | PrivateRedis

    def meet(self, opened: ExitStack) -> None:
        """Put the proxies before the server."""
        self._workers = opened.enter_context(FaultProxy(self.server.port))
        self._producers = opened.enter_context(FaultProxy(self.server.port))

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def worker_url(self) -> str:
        return self._workers.url(self.url)

    @property
    def producer_url(self) -> str:
        return self._producers.url(self.url)

    def restart_the_broker(self) -> None:
        self.server.kill()
        time.sleep(self.chance.uniform(0, 3))
        self.server.start()

    def _proxy(self) -> FaultProxy:
        return self.chance.choice((self._workers, self._producers))

    def cut_connections(self) -> None:
        proxy = self._proxy()
        for _ in range(self.chance.randint(1, 5)):
            proxy.cut()
            time.sleep(self.chance.uniform(0, 0.5))

    def refuse_connections(self) -> None:
        proxy = self._proxy()
        proxy.refuse()
        time.sleep(self.chance.uniform(0.1, 3))
        proxy.heal()

    def stall_connections(self) -> None:
        proxy = self._proxy()
        proxy.stall(self.chance.choice(("to server", "to client", "both")))
        time.sleep(self.chance.uniform(0.1, 6))
        proxy.heal()

    def slow_connections(self) -> None:
        proxy = self._proxy()
        proxy.slow(latency=self.chance.uniform(0.01, 0.2))
        time.sleep(self.chance.uniform(0.1, 3))
        proxy.heal()

    def forget_connections(self) -> None:
        self._proxy().half_open()


class RedisStage(NetworkStage):
    """Broker and store in one Redis that writes each change to disk before it answers."""

    faults = tuple(name for name in NetworkStage.faults if name != "block_the_store")

    def set_up(self, opened: ExitStack) -> None:
        options = {"appendfsync": "always"}
        self.server = opened.enter_context(PrivateRedis(append_only=True, options=options))
        self.meet(opened)
        self.processes.environment["CALLBOARD_STORE_URL"] = self.server.url


class RabbitmqStage(NetworkStage):
    """A node of its own. Connections have a heartbeat of four seconds; the store is a Redis of its own."""

    faults = (
        *(name for name in NetworkStage.faults if name != "block_the_store"),
        "close_all_connections",
        "raise_a_memory_alarm",
        "restart_the_store",
        "restart_the_store",
    )
    server: PrivateRabbitmq

    def set_up(self, opened: ExitStack) -> None:
        self.server = opened.enter_context(PrivateRabbitmq())
        options = {"appendfsync": "always"}
        self._store = opened.enter_context(PrivateRedis(append_only=True, options=options))
        self.meet(opened)
        self.processes.environment["CALLBOARD_STORE_URL"] = self._store.url

    @property
    def url(self) -> str:
        return f"{self.server.url}?heartbeat=4"

    def restart_the_broker(self) -> None:
        self.server.write_down_queues()
        super().restart_the_broker()

    def restart_the_store(self) -> None:
        self._store.kill()
        time.sleep(self.chance.uniform(0, 5))
        self._store.start()

    def close_all_connections(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self.server.close_all_connections()

    def raise_a_memory_alarm(self) -> None:
        self.server.set_memory_alarm(True)
        try:
            time.sleep(self.chance.uniform(0.1, 3))
        finally:
            self.server.set_memory_alarm(False)


STAGES: Mapping[str, type[Stage]] = {"file": FileStage, "redis": RedisStage, "rabbitmq": RabbitmqStage}


# -- a round ----------------------------------------------------------------------------------------------


def play(name: str, seed: str, seconds: float, folder: Path, say: Callable[[str], None]) -> Found:
    """One round: faults for so long, then everything has to come to its end."""
    chance = random.Random(seed)
    done = list[Fault]()
    with STAGES[name](folder) as stage:
        ticks = stage.begin()
        began = time.monotonic()
        for number, fault in enumerate(drawn(stage.faults, chance)):
            # How much one fault asks of chance depends on what runs just then, and mustn't change the others.
            stage.chance = random.Random(f"{seed}-{number}")
            say(f"  {time.monotonic() - began:6.1f} s  {fault}")
            start = time.monotonic()
            getattr(stage, fault)()
            done.append(Fault(fault, start, time.monotonic()))
            time.sleep(chance.uniform(0, 3))
            if time.monotonic() - began > seconds:
                break
        stage.processes.revive_producers()
        assert stage.processes.live(), "somebody has ended who wasn't told to; see the logs"
        stage.finish(ticks)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            dead = stage.dead()
            if not unended(stage.ledger, ticks, dead):
                break
            time.sleep(0.5)
        return account(stage.ledger, ticks, dead, done, time.monotonic() - began)


def unended(ledger: Ledger, ticks: TickLedger, dead: Iterable[tuple[str, str]]) -> set[str]:
    """The jobs that have no end yet, those of ticks among them."""
    done = ledger.ended() | {job_id for job_id, _ in dead}
    return (ledger.sent().keys() - done) | ticks.missed(done)


def drawn(faults: Sequence[str], chance: random.Random) -> Iterator[str]:
    """Each of them in turn, in an order that is new every time round."""
    while True:
        yield from chance.sample(faults, len(faults))


def account(
    ledger: Ledger, ticks: TickLedger, dead: list[tuple[str, str]], faults: list[Fault], seconds: float
) -> Found:
    """What the ledgers say."""
    without_end = unended(ledger, ticks, dead)
    sent, runs, again = ledger.sent(), ledger.runs(), ledger.again()
    pause, paused_by = longest_pause(runs.values(), faults)
    return Found(
        seconds=seconds,
        sent=len(sent),
        raised=ledger.raised(),
        runs=sum(map(len, runs.values())),
        lost=len(without_end & sent.keys()),
        ticks=len(ticks.due()),
        ticks_told=len(ticks.told()),
        ticks_missed=len(without_end - sent.keys()),
        ticks_doubled=len(ticks.doubled()),
        at_once=len(ledger.at_once()),
        again=len(again),
        dead=Counter(reason.partition(":")[0] for _, reason in dead),
        why_again=Counter(
            cause(first, second, ledger, faults)
            for found in again.values()
            for first, second in itertools.pairwise(found)
        ),
        faults=Counter(fault.name for fault in faults),
        longest_pause=pause,
        paused_by=paused_by,
    )


def cause(first: Run, second: Run, ledger: Ledger, faults: list[Fault]) -> str:
    """Why a job ran again: its process was killed, or else the last fault before its ack."""
    if first[2] in ledger.killed and first[1] >= ledger.killed[first[2]] - ACK:
        return "its process was killed"
    before = [fault.name for fault in faults if fault.begin < min(first[1] + ACK, second[0])]
    return f"after {before[-1]}" if before else "without a fault"


def longest_pause(runs: Iterable[list[Run]], faults: list[Fault]) -> tuple[float, str]:
    """The longest time in which no job started, and the last fault before its end."""
    starts = sorted(run[0] for found in runs for run in found)
    begin, end = max(itertools.pairwise(starts), key=lambda pair: pair[1] - pair[0], default=(0.0, 0.0))
    before = [fault.name for fault in faults if fault.begin < end]
    return end - begin, before[-1] if before else "no fault"


_FLAWLESS = "nothing was lost, nothing ran twice at once, no tick is missing or double."

# -- the command ------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long, in all (default: 10)")
    parser.add_argument("--only", default=",".join(STAGES), help="drivers, comma-separated (default: all)")
    parser.add_argument("--seed", type=int, help="repeat the run of this seed (default: a new one)")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - STAGES.keys():
        parser.error(f"there is no driver {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    return soak(names, seed, options.minutes * 60)


def soak(names: Sequence[str], seed: int, seconds: float) -> int:
    """Round after round, the drivers in turn, until the time is over; returns the exit code."""
    end = time.monotonic() + seconds
    totals, failed = {name: Found() for name in names}, list[str]()
    print(f"Seed {seed}; to repeat this run: make test-faults ARGS='--seed {seed} --only {','.join(names)}'")
    for number, name in enumerate(itertools.cycle(names)):
        left = end - time.monotonic()
        if left <= 0 and number >= len(names):
            break
        title = f"{seed}-{number}-{name}"
        print(f"Round {title}:", flush=True)
        folder = Path(tempfile.mkdtemp(prefix=f"callboard-faults-{title}-"))
        share = seconds / len(names)  # each driver has that, however long the others took
        length = min(ROUND, share if number < len(names) else left)
        if not _survived(name, title, length, folder, totals[name]):
            failed.append(f"{title}, its files are in {folder}")
        else:
            shutil.rmtree(folder)
    for name, total in totals.items():
        print(f"\n{name}\n{total}")
    print(f"\nSeed {seed}: {'FAILED.' if failed else _FLAWLESS}")
    for text in failed:
        print(f"  failed: {text}")
    return 1 if failed else 0


def _survived(name: str, title: str, seconds: float, folder: Path, total: Found) -> bool:
    try:
        found = play(name, title, seconds, folder, lambda line: print(line, flush=True))
    except Exception:
        traceback.print_exc()
        return False
    total.add(found)
    print(f"{found}\n", flush=True)
    return found.is_flawless


if __name__ == "__main__":
    sys.exit(main())
