"""Where a job's microseconds go on RabbitMQ, from the send to the ack: `python -m benchmarks.microseconds`.

Three processes of their own send jobs one by one, send them in calls of a thousand, and run them, each under py-spy,
which looks 500 times a second at what every thread does. A sample belongs to the innermost file that is named
below. The shares are of the CPU time that the process used, by the system's own count, so that a busy machine
changes them little. RabbitMQ's own time is that of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter as Tally
from pathlib import Path

from benchmarks.job import Counter, payload
from benchmarks.systems import wait_until
from benchmarks.systems.callboard import CallboardRabbitmq
from callboard.servers import PrivateRabbitmq

_RATE = 500  # samples a second
_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 300.0
_OTHER = "the interpreter, and what is left"
_RABBITMQ = "RabbitMQ itself"
_TOTAL = "all of our process"

#: What a file belongs to. The first that fits is taken.
_PARTS = (
    ("the body of the job", r"benchmarks/job\.py"),
    ("payload: check, dump", r"callboard/payload\.py|pydantic"),
    ("records: changes, SQLite", r"callboard/store/|middleware/records\.py"),
    ("metrics", r"metrics\.py|prometheus_client|callboard/worker/(totals|blocks)\.py"),
    (
        "middleware: all other hooks",
        r"/middleware/|brokers/hooks\.py|dramatiq/middleware|callboard/context\.py",
    ),
    (
        "message, envelope, rules of sending",
        r"callboard/(actor|envelope|ids)\.py|brokers/(sending|unique|event_loop)\.py",
    ),
    ("publishing: window, frames", r"rabbitmq/(publisher|batch|frames)\.py"),
    ("claiming: deliveries, prefetch, acks", r"rabbitmq/(intake|lane|acks|waiting)\.py"),
    ("the connection: pika, sockets", r"rabbitmq/(link|stream|driver)\.py|/pika/"),
    ("reading and settling a message", r"brokers/(receiving|settling|claim|core|base)\.py"),
    ("the worker: hand-off, threads", r"callboard/worker/"),
)
_KINDS = ("send", "send_many", "run")
_FILE = re.compile(r"\(([^()]*?)(?::\d+)?\)$")


def measure(kind: str, node: PrivateRabbitmq, py_spy: str, folder: Path, count: int) -> dict[str, float]:
    """Microseconds of CPU for each job, by part."""
    stacks = folder / f"{kind}.txt"
    before = _cpu_of(node.pid)
    command = [py_spy, "record", "--rate", str(_RATE), "--format", "raw", "--full-filenames"]
    command += ["--output", str(stacks), "--", sys.executable, "-m", "benchmarks.microseconds"]
    command += ["--child", kind, node.url, str(folder), str(count)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment(folder))
    answer = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))
    server = _cpu_of(node.pid) - before
    samples = _samples(stacks)
    used = 1e6 * answer["cpu"] / count
    found = {part: used * hits / samples.total() for part, hits in samples.items()}
    return found | {_TOTAL: used, _RABBITMQ: 1e6 * server / count}


def _samples(stacks: Path) -> Tally[str]:
    found: Tally[str] = Tally()
    for line in stacks.read_text().splitlines():
        stack, _, hits = line.rpartition(" ")
        if "working (" not in stack and "_bootstrap" not in stack:
            continue  # imports, and what comes before the clock starts
        found[_part_of(stack)] += int(hits)
    return found


def _part_of(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        if (path := _FILE.search(frame)) is not None:
            for part, pattern in _PARTS:
                if re.search(pattern, path[1]):
                    return part
    return _OTHER


def _environment(folder: Path) -> dict[str, str]:
    counter = Counter(folder / "counter")
    return os.environ | {"BENCH_COUNTER": str(counter.path)}


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


# -- in the measured process


def child(kind: str, url: str, folder: Path, count: int) -> None:
    """Do the work, and print the CPU seconds that it took."""
    system = CallboardRabbitmq(folder, server_url=url)
    system.send(payload())
    before = _own_cpu()
    working(kind, system, folder, count)
    print(json.dumps({"cpu": _own_cpu() - before}), flush=True)
    os._exit(0)


def working(kind: str, system: CallboardRabbitmq, folder: Path, count: int) -> None:
    """What is measured; its name is looked for in the stacks."""
    if kind == "send":
        for _ in range(count):
            system.send(payload())
    elif kind == "send_many":
        jobs = [payload() for _ in range(1000)]
        for _ in range(count // 1000):
            system.send_many(jobs)
    else:
        _run(system, folder, count)
    recorder = system._broker.recorder
    assert recorder is not None
    recorder.flush(_PATIENCE)


def _run(system: CallboardRabbitmq, folder: Path, count: int) -> None:
    from callboard.worker.garbage import look_for_garbage_less_often
    from callboard.worker.worker import Worker

    counter = Counter(folder / "counter")
    look_for_garbage_less_often()
    worker = Worker(system._broker, ["bench.medium"], threads=8)
    worker.start()
    wait_until(lambda: counter.total() >= count, seconds=_PATIENCE, what="the jobs")
    worker.stop(grace=30)


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.microseconds", description=__doc__)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        kind, url, folder, count = options.child
        child(kind, url, Path(folder), int(count))
    if (py_spy := shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        parser.exit(1, "py-spy is missing: pip install py-spy\n")
    # The jobs that are sent are those that run.
    counts = {"send": options.jobs // 10, "send_many": options.jobs, "run": options.jobs}
    with tempfile.TemporaryDirectory() as folder, PrivateRabbitmq() as node:
        found = {kind: measure(kind, node, py_spy, Path(folder), counts[kind]) for kind in _KINDS}
    _print(found)


def _print(found: dict[str, dict[str, float]]) -> None:
    print("\n| microseconds of CPU for a job | send | send_many | run |\n|---|---|---|---|")
    for part in (*(name for name, _ in _PARTS), _OTHER, _TOTAL, _RABBITMQ):
        cells = [f"{found[kind].get(part, 0.0):.1f}" for kind in _KINDS]
        print(f"| {part} | {' | '.join('' if cell == '0.0' else cell for cell in cells)} |")


if __name__ == "__main__":
    main()
