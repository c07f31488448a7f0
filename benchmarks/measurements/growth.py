"""Whether the rate holds: behind a million jobs as behind ten thousand, on 24 queues as on one."""

from __future__ import annotations

from benchmarks.bench import Bench, run_out
from benchmarks.figures import Figures
from benchmarks.job import Counter, payload
from benchmarks.systems.callboard import CALLBOARDS, Callboard

LARGE, SMALL = 1_000_000, 10_000
QUEUES, SPREAD = 24, 40_000
COLUMNS = ("10,000 waiting /s", "1,000,000 waiting /s", "one queue /s", "24 queues /s")
_MOST = 2.0
_CHUNK = 1000


def measure(bench: Bench) -> Figures:
    """Interleaved: a while of the large backlog, then the others anew; as often as there are rounds."""
    systems = bench.systems(CALLBOARDS)
    figures = Figures(COLUMNS, [system.name for system in systems])
    large, small, spread = bench.size(LARGE, 20_000), bench.size(SMALL, 5_000), bench.size(SPREAD, 6_000)
    for system_class in systems:
        name = system_class.name
        with bench.fresh(system_class) as deep:
            bench.say(f"growth: {name}, filling in {large:,}")
            fill(deep, large)
            for number in range(1, bench.rounds + 1):
                bench.say(f"growth, round {number} of {bench.rounds}: {name}")
                figures.add(name, COLUMNS[1], rate(deep, warm=small // 10, total=large))
                figures.add(name, COLUMNS[0], fresh_rate(bench, system_class, jobs=small))
                figures.add(name, COLUMNS[2], fresh_rate(bench, system_class, jobs=spread))
                figures.add(name, COLUMNS[3], fresh_rate(bench, system_class, jobs=spread, queues=QUEUES))
    figures.note(
        f"Jobs run a second by one process: the first {_MOST:.0f} s of a backlog after its start, or all of it. "
        f"{spread:,} jobs were in the one queue, or spread over the {QUEUES}."
        + (
            f" A quick run: the large backlog was {large:,} and the small one {small:,}."
            if bench.quick
            else ""
        )
    )
    return figures


def fill(system: Callboard, count: int) -> None:
    """Put in so many jobs."""
    jobs = [payload() for _ in range(_CHUNK)]
    for _ in range(count // _CHUNK):
        system.fill(jobs)


def rate(system: Callboard, *, warm: int, total: int) -> float:
    """Jobs a second that a worker runs of what waits."""
    counter = Counter(system.folder / "counter")
    with system.working(counter.path) as workers:
        ran, seconds, _ = run_out(counter, workers, warm=warm, total=total, most_seconds=_MOST)
    return ran / seconds


def fresh_rate(bench: Bench, system_class: type[Callboard], *, jobs: int, queues: int = 1) -> float:
    """The same of a backlog made for it."""
    with bench.fresh(system_class, queues=queues) as system:
        fill(system, jobs)
        return rate(system, warm=jobs // 10, total=jobs)
