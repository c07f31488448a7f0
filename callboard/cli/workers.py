"""`callboard worker`, `callboard dev` and `callboard workers`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callboard.cli.options import Json, session
from callboard.cli.session import refuse_stub

if TYPE_CHECKING:
    from callboard.queues import Priority
    from callboard.worker.http_server import Address

Queues = Annotated[
    list[str] | None,
    typer.Option(
        "--queues", "-q", help="Which: 'email.*,*.critical'. All, if it isn't given.", metavar="PATTERNS"
    ),
]
Threads = Annotated[
    int, typer.Option("--threads", "-t", metavar="N", min=1, help="How many jobs each process runs at once.")
]
Grace = Annotated[
    float,
    typer.Option(
        "--grace", metavar="SECONDS", min=0, help="Seconds that running jobs have to finish when it stops."
    ),
]
Http = Annotated[
    str | None,
    typer.Option(
        "--http",
        metavar="HOST:PORT",
        help="Serve /metrics, /healthz and /readyz there, such as 127.0.0.1:9191.",
    ),
]


def worker(
    ctx: typer.Context,
    queues: Queues = None,
    processes: Annotated[
        int,
        typer.Option("--processes", "-p", metavar="N", min=1, max=50, help="How many processes run jobs."),
    ] = 2,
    threads: Threads = 8,
    reserve: Annotated[
        str,
        typer.Option(
            "--reserve",
            metavar="PRIORITY=N,...",
            help="More threads, for jobs at least so urgent: 'critical=1,high=2'. A process for each priority.",
            show_default=False,
        ),
    ] = "",
    grace: Grace = 30.0,
    max_jobs: Annotated[
        int | None,
        typer.Option("--max-jobs", metavar="N", min=1, help="Replace a process when it has done so many."),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            "--max-memory", metavar="MIB", min=1, help="Replace a process when it uses more memory."
        ),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Another module that declares actors."),
    ] = None,
    http: Http = None,
) -> None:
    """Run jobs. A process that dies is replaced; SIGTERM lets running jobs finish, a second one interrupts them.

    The jobs of schedules are sent by `callboard scheduler`, which runs beside it.
    """
    from callboard.settings import Settings
    from callboard.worker.options import WorkerOptions
    from callboard.worker.recycling import Enough
    from callboard.worker.supervisor import run_supervisor

    level, style = set_up_logging()
    options = WorkerOptions(
        queues=tuple(queues or ()),
        processes=processes,
        threads=threads,
        reserve=_reserved(reserve),
        grace=grace,
        module=session(ctx).module,
        modules=tuple(modules or ()),
        log_level=level,
        log_format=style,
        http=http_address(http if http is not None else Settings.load().worker_http),
        enough=Enough(jobs=max_jobs, memory=max_memory * 1024 * 1024 if max_memory else None),
    )
    raise typer.Exit(run_supervisor(options))


def dev(
    ctx: typer.Context,
    queues: Queues = None,
    threads: Threads = 4,
    grace: Grace = 2.0,
    http: Http = None,
) -> None:
    """Run jobs and schedules while you write them: everything is loaded anew when a file is saved.

    In production, `callboard worker` runs the jobs and `callboard scheduler` sends those of schedules.
    """
    from pathlib import Path

    from callboard.worker.options import WorkerOptions
    from callboard.worker.supervisor import run_supervisor

    level, style = set_up_logging()
    options = WorkerOptions(
        queues=tuple(queues or ()),
        processes=1,
        threads=threads,
        grace=grace,
        module=session(ctx).module,
        log_level=level,
        log_format=style,
        log_successes=True,  # whoever tries something out wants to see that it ran
        watch=(Path.cwd(),),
        companions={"scheduler": _schedule},
        http=http_address(http or ""),
    )
    raise typer.Exit(run_supervisor(options))


def http_address(text: str) -> Address | None:
    """Where the port is; None for no port."""
    from callboard.worker.http_server import Address

    return Address.parse(text) if text.strip() else None


def _reserved(text: str) -> dict[Priority, int]:
    """How many threads are kept for jobs of which priority."""
    from callboard.queues import Priority

    words = {priority.word: priority for priority in Priority if priority is not Priority.LOW}
    found: dict[Priority, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        word, _, count = part.partition("=")
        priority = words.get(word.strip().lower())
        if priority is None or priority in found or not count.strip().isdecimal() or int(count) < 1:
            raise typer.BadParameter(
                f"'{part}' reserves nothing: write critical=1 or high=2, each of {', '.join(words)} once at most"
            )
        found[priority] = int(count)
    return found


def _schedule(broker: Any, stop: Any) -> None:
    """The companion that sends the jobs of schedules. Imports nothing before it runs: the supervisor, which only
    starts it, stays small."""
    from callboard.scheduler import run_scheduler

    run_scheduler(broker, stop)


def set_up_logging() -> tuple[str, str]:
    """How to log, from the settings; and from here on, do so."""
    from callboard.logs import configure_logging
    from callboard.settings import Settings

    settings = Settings.load()
    if settings.broker_url.startswith("stub:"):
        refuse_stub()
    configure_logging(level=settings.log_level, style=settings.log_format)
    return settings.log_level, settings.log_format


def workers(ctx: typer.Context, json: Json = False) -> None:
    """List the workers that live, and what they run."""
    from callboard.cli import output
    from callboard.operations.moments import ago, span
    from callboard.worker.patterns import summed_up

    with session(ctx).operations() as operations:
        found = operations.workers()
    if json:
        output.as_json({"workers": [_worker_json(beat) for beat in found]})
        return
    if not found:
        output.say("No worker lives. Start one: callboard worker")
        return
    now = time.time()
    output.table(
        [
            output.Column("WORKER", least=16),
            output.Column("UP", rank=3),
            output.Column("BUSY", justify="right"),
            output.Column("AHEAD", justify="right", rank=4),
            output.Column("SEEN", rank=5),
            output.Column("QUEUES", least=16, rank=2),
            output.Column("RUNNING", least=16, rank=6),
        ],
        [
            (
                beat.worker,
                span(now - beat.started_at),
                f"{len(beat.running)}/{beat.threads}",
                str(beat.claimed),
                ago(beat.at, now),
                ", ".join(summed_up(beat.queues)),
                ", ".join(beat.running),
            )
            for beat in found
        ],
    )


def _worker_json(beat: Any) -> dict[str, Any]:
    """A worker for programs. These fields are stable: see docs/reference/cli.md."""
    from callboard.cli.output import timestamp

    return {
        "worker": beat.worker,
        "host": beat.host,
        "pid": beat.pid,
        "started_at": timestamp(beat.started_at),
        "seen_at": timestamp(beat.at),
        "queues": list(beat.queues),
        "threads": beat.threads,
        "running": list(beat.running),
        "claimed": beat.claimed,
    }
