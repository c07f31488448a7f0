"""`make bench`: the same job on Callboard and its peers, interleaved in one run; medians, ratios and gates.

    python -m benchmarks                            what make bench runs: everything
    python -m benchmarks --quick                    a tenth of it, to see that it works
    python -m benchmarks peers --only file,huey     one measurement, of some systems
    python -m benchmarks growth mixed --write       two, and the page made anew with what they found
    python -m benchmarks page                       the page made anew of what was found before

A round measures every system once, in turn, so that what the machine does beside it hits all alike. The rates of
two runs can't be compared; the ratios within one can, and gaps under 1.5 are ties.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from benchmarks import asked, gates
from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.measurements import far_future, growth, many_queues, mixed, peers
from benchmarks.measurements.commands import Command
from benchmarks.report import Report

Measure = Callable[[Bench], Figures]

MEASUREMENTS: Mapping[str, Measure | Command] = {
    "peers": peers.measure,
    "sending": Command("benchmarks.sending", quick=("--jobs", "100", "--bulks", "1")),
    "publishing": Command("benchmarks.publishing", quick=("--messages", "3200"), table=1),
    "far-future": far_future.measure,
    "many-queues": many_queues.measure,
    "growth": growth.measure,
    "mixed": mixed.measure,
    "promises": Command("benchmarks.promises", ("--rabbitmq",), ("--rabbitmq", "--jobs", "3000"), table=1),
    "microseconds": Command("benchmarks.microseconds", quick=("--jobs", "3000"), rounds=False),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or "").splitlines()[0],
        epilog="Measurements: " + ", ".join(MEASUREMENTS) + "; page: measure nothing, make the page anew.",
    )
    parser.add_argument("measurements", nargs="*", metavar="MEASUREMENT", help="which; all, if none is given")
    parser.add_argument("--rounds", type=int, help="how often each system is measured: 3, or 1 if quick")
    parser.add_argument(
        "--only", default="", help="systems whose names contain one of these, comma-separated"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, to see that it works")
    parser.add_argument(
        "--write", action="store_true", help="keep what was found, and make docs/performance.md of it"
    )
    options = parser.parse_args()
    wanted = options.measurements or list(MEASUREMENTS)
    if wanted == ["page"]:
        Report.load().write()
        return 0
    if unknown := [name for name in wanted if name not in MEASUREMENTS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)} and page")
    only = [part.strip() for part in options.only.split(",") if part.strip()]
    if options.write and (options.quick or only):
        parser.error("a quick run, or one of some systems, isn't written down")
    report = Report()
    rounds = options.rounds or (1 if options.quick else 3)
    with Bench(rounds=rounds, only=only, quick=options.quick) as bench:
        failed = [name for name in wanted if not measured(bench, name, report)]
    print(summary(report))
    if options.write:
        kept = Report.load()
        kept.figures |= report.figures
        kept.texts |= report.texts
        kept.save()
        kept.write()
    return 1 if failed else 0


def measured(bench: Bench, name: str, report: Report) -> bool:
    """Make one measurement, and print it. One that fails doesn't take the others with it."""
    measure = MEASUREMENTS[name]
    try:
        if isinstance(measure, Command):
            report.texts[name] = measure.run(bench)
            report.figures[name] = measure.figures(report.texts[name])
        else:
            report.figures[name] = measure(bench)
    except Exception as error:
        bench.say(f"{name} failed: {type(error).__name__}: {error}")
        return False
    print(f"## {name}\n\n{report.part(name)}\n", flush=True)
    return True


def summary(report: Report) -> str:
    """The gates and aims of what was measured."""
    texts = gates.in_the_way()
    made = tuple(gate for gate in asked.GATES if gate.measurement in report.figures)
    aims = tuple(gate for gate in asked.AIMS if gate.measurement in report.figures)
    return "\n\n".join(
        gates.table(some, report.figures, texts, heading)
        for some, heading in ((made, "gate"), (aims, "aim"))
        if some
    )


if __name__ == "__main__":
    sys.exit(main())
