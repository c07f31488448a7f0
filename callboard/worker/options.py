"""What a worker is told: how many processes and threads, which queues, how it stops and when it is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from callboard.queues import Priority
from callboard.worker.child import Companion
from callboard.worker.http_server import Address
from callboard.worker.recycling import Enough

MAX_PROCESSES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is to do.

    Attributes:
        queues: Patterns over the declared queues, such as `email.*`; none means all.
        processes: How many processes run jobs.
        threads: How many jobs each of them runs at once.
        reserve: How many more jobs may run at once that are at least so urgent; each of these has a process.
        grace: Seconds that running jobs have to finish when the worker stops.
        module: The module that has the application's `broker`.
        modules: More modules that declare actors.
        log_level: The least level that is logged.
        log_format: 'console', 'json' or 'auto'.
        log_successes: Whether each job that succeeds has a line, too.
        watch: Folders; when a file in them changes, the application is loaded anew.
        companions: What else runs, each in a process of its own, by name.
        http: Where metrics and the worker's health are served; None for nowhere.
        enough: When a process is replaced by another: after so many jobs, or with so much memory.
        stalled_after: Seconds that a process may claim nothing while messages wait, if there is such a port.
    """

    queues: tuple[str, ...] = ()
    processes: int = 2
    threads: int = 8
    reserve: Mapping[Priority, int] = field(default_factory=dict)
    grace: float = 30.0
    module: str = "broker"
    modules: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "auto"
    log_successes: bool = False
    watch: tuple[Path, ...] = ()
    companions: Mapping[str, Companion] = field(default_factory=dict)
    http: Address | None = None
    enough: Enough = field(default_factory=Enough)
    stalled_after: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise ValueError(f"a worker has 1 to {MAX_PROCESSES} processes, not {self.processes}")
        if self.threads < 1:
            raise ValueError(f"a worker process needs at least one thread, not {self.threads}")
        for priority, count in self.reserve.items():
            if priority is Priority.LOW:
                raise ValueError(
                    "every thread takes low jobs; reserve some for critical, high or medium ones"
                )
            if count < 1:
                raise ValueError(
                    f"what is reserved for {priority.word} jobs is at least one thread, not {count}"
                )
        if self.grace < 0:
            raise ValueError(f"the grace can't be negative: {self.grace}")
