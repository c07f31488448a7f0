"""How fast good jobs run beside bad ones: a thousand jobs alone, and beside one bad job of every kind.

    python -m benchmarks.bad_company                 three rounds of each, interleaved
    python -m benchmarks.bad_company --rounds 1 --jobs 300

The bad ones come at once with the good: a job that kills its worker process, one that hangs and one that holds the
GIL (both isolated, with a limit of three seconds), one that eats memory (isolated, to 300 MiB), one that
writes 5,000 lines of log, and a thousand bodies that can't be read. A good job sleeps for 50 ms, on two processes of
four threads. The gate: beside them the good ones run at no less than half their speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import dramatiq

from callboard import envelope
from callboard.brokers import open_driver
from callboard.brokers.driver import Outgoing

MALFORMED = 1_000
BAD = ("die", "hang", "hold-the-gil-for-ever", "eat-memory", "flood-the-log")
GATE = 0.5
_PATIENCE = 300.0
_ROOT = Path(__file__).parents[1]


def message(actor: str) -> Outgoing:
    job: dramatiq.Message[Any] = dramatiq.Message(
        queue_name="jobs.medium",
        actor_name=actor,
        args=(),
        kwargs={},
        options={"callboard": {"v": 1}},
        message_id=envelope.new_job_id(),
        message_timestamp=int(time.time() * 1000),
    )
    return Outgoing(job.queue_name, envelope.encode(job), job.message_id)


def company() -> list[Outgoing]:
    """All that is bad."""
    malformed = [Outgoing("jobs.medium", b"[1, 2", f"malformed-{number}") for number in range(MALFORMED)]
    return [message(actor) for actor in BAD] + malformed


def rate(jobs: int, bad: list[Outgoing]) -> float:
    """Good jobs a second, from their sending to the last one's end."""
    with tempfile.TemporaryDirectory(prefix="callboard-company-") as folder:
        done = Path(folder, "done")
        with closing(open_driver(f"file:{folder}")) as driver, _worker(folder) as worker:
            try:
                driver.put([message("work")], deadline=_PATIENCE)
                _wait(done, 1)
                mixed = [message("work") for _ in range(jobs)]
                for place, one in enumerate(bad):  # from the first on, spread over the first half
                    mixed.insert(place * jobs // max(1, len(bad)), one)
                began = time.monotonic()
                driver.put(mixed, deadline=_PATIENCE)
                _wait(done, 1 + jobs)
                return jobs / (time.monotonic() - began)
            finally:
                worker.terminate()
                worker.wait(60)


def _worker(folder: str) -> subprocess.Popen[bytes]:
    callboard = str(Path(sys.executable).with_name("callboard"))
    environment = {
        "PYTHONPATH": str(_ROOT),
        "CALLBOARD_BROKER_URL": f"file:{folder}",
        "CALLBOARD_STORE_URL": f"file:{folder}",
        "CALLBOARD_ONE_HOST": "1",
        "COMPANY_DONE": f"{folder}/done",
    }
    options = ("worker", "--queues", "jobs.*", "--processes", "2", "--threads", "4")
    return subprocess.Popen(
        [callboard, "--module", "benchmarks.apps.company", *options],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait(done: Path, count: int) -> None:
    end = time.monotonic() + _PATIENCE
    while not done.exists() or done.stat().st_size < count:
        if time.monotonic() > end:
            raise TimeoutError(f"the good jobs weren't done after {_PATIENCE:.0f} s")
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bad_company", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000, help="good ones, in each measurement")
    options = parser.parse_args()
    alone, beside = [], []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        alone.append(rate(options.jobs, []))
        beside.append(rate(options.jobs, company()))
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    ratio = statistics.median(ratios)
    print("| | jobs/s | |\n|---|---|---|")
    print(f"| alone | {statistics.median(alone):.0f} | |")
    print(f"| beside bad ones | {statistics.median(beside):.0f} | {ratio:.2f} of it; the gate is {GATE} |")
    print(f"\nRatios of the rounds: {', '.join(f'{found:.2f}' for found in ratios)}.")
    return 0 if ratio >= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
