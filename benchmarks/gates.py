"""The gates: what is asked of Callboard, and where it stands; and the aims beyond them.

Each compares figures of one measurement, made in one run. What stands in the way of one that isn't met is
written by hand, in `in_the_way.toml`, under the gate's key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures, number

IN_THE_WAY = Path(__file__).parent / "in_the_way.toml"

Found = Mapping[str, Figures]


@dataclass(frozen=True)
class Gate:
    """Something that is asked.

    Args:
        key: Its name in `in_the_way.toml`.
        measurement: Where its figures come from.
        what: In words.
        value: What was found, None if it wasn't measured.
        asked: The number to compare it with.
        least: Whether that is the least, or else the most.
        unit: Of both numbers.
        aim: Whether it is only hoped for.
    """

    key: str
    measurement: str
    what: str
    value: Callable[[Figures], float | None]
    asked: float
    least: bool = True
    unit: str = ""
    aim: bool = False

    def found(self, figures: Found) -> float | None:
        """The number that was found, None if it wasn't measured."""
        measured = figures.get(self.measurement)
        return None if measured is None else self.value(measured)

    def met(self, figures: Found) -> bool | None:
        """Whether it is met, None if it wasn't measured."""
        found = self.found(figures)
        if found is None:
            return None
        return found >= self.asked if self.least else found <= self.asked

    def row(self, figures: Found, in_the_way: Mapping[str, str]) -> str:
        """Its line of the table."""
        found, met = self.found(figures), self.met(figures)
        asked = f"{'at least' if self.least else 'at most'} {self.asked:,g}{self.unit}"
        if found is None:
            return f"| {self.what} | {asked} | - | not measured | |"
        word = "met" if met else "**not met**"
        why = "" if met else in_the_way.get(self.key, "")
        return f"| {self.what} | {asked} | {number(found)}{self.unit} | {word} | {why} |"


def ratio(row: str, column: str, other_row: str, other_column: str = "") -> Callable[[Figures], float | None]:
    """One median to another; by default of the same column."""

    def value(figures: Figures) -> float | None:
        ours, theirs = figures.median(row, column), figures.median(other_row, other_column or column)
        return None if ours is None or not theirs else ours / theirs

    return value


def median(row: str, column: str) -> Callable[[Figures], float | None]:
    """A median as it is."""
    return lambda figures: figures.median(row, column)


def difference(row: str, column: str, other_column: str) -> Callable[[Figures], float | None]:
    """How much larger one column is than another."""

    def value(figures: Figures) -> float | None:
        one, other = figures.median(row, column), figures.median(row, other_column)
        return None if one is None or other is None else one - other

    return value


FILE, RABBITMQ, REDIS = "callboard, file", "callboard, RabbitMQ", "callboard, Redis"
STOCK, CONFIRMED, STOCK_REDIS = "dramatiq, RabbitMQ", "dramatiq, RabbitMQ, confirms", "dramatiq, Redis"
HUEY, BULLMQ = "huey, SQLite (at most once)", "BullMQ, Redis (Node)"
RATE, TWO, CPU, SEND, MANY = "processed /s", "2 processes /s", "CPU s per 10k", "send /s", "send_many /s"
P50, P99 = "p50 ms", "p99 ms"

_ALL = {"file": FILE, "rabbitmq": RABBITMQ, "redis": REDIS}


def _far_future() -> list[Gate]:
    gates: list[Gate] = []
    for short, name in _ALL.items():
        on = name.removeprefix("callboard, ")
        gates += [
            Gate(
                f"far-{short}-run",
                "far-future",
                f"{on}: of 1,000 near jobs behind 100,000 far ones, run",
                median(name, "run"),
                1_000,
            ),
            Gate(
                f"far-{short}-p99",
                "far-future",
                f"{on}: how late those are, p99",
                median(name, "late p99 ms"),
                200,
                least=False,
                unit=" ms",
            ),
            Gate(
                f"far-{short}-memory",
                "far-future",
                f"{on}: what the worker's memory grew by",
                difference(name, "RSS MB after", "RSS MB before"),
                10,
                least=False,
                unit=" MB",
            ),
        ]
    return gates


def _many_queues() -> list[Gate]:
    connections = Gate(
        "connections",
        "many-queues",
        "RabbitMQ: connections of a process, 24 queues",
        median(RABBITMQ, "connections"),
        2,
        least=False,
    )
    idle = [
        Gate(
            f"idle-{short}",
            "many-queues",
            f"{name.removeprefix('callboard, ')}: CPU of an idle worker, 24 queues",
            median(name, "idle CPU %"),
            1,
            least=False,
            unit=" %",
        )
        for short, name in _ALL.items()
    ]
    return [connections, *idle]


def _growth() -> list[Gate]:
    gates: list[Gate] = []
    for short, name in _ALL.items():
        on = name.removeprefix("callboard, ")
        gates += [
            Gate(
                f"growth-{short}-backlog",
                "growth",
                f"{on}: rate behind 1,000,000 jobs, to that behind 10,000",
                ratio(name, "1,000,000 waiting /s", name, "10,000 waiting /s"),
                0.8,
            ),
            Gate(
                f"growth-{short}-queues",
                "growth",
                f"{on}: rate of 24 queues, to that of one",
                ratio(name, "24 queues /s", name, "one queue /s"),
                0.9,
            ),
        ]
    return gates


_TO_C_CLIENT = "send_many of 1000 to C client, window of 500"

GATES: tuple[Gate, ...] = (
    Gate("processed", "peers", "RabbitMQ: processed, to stock Dramatiq", ratio(RABBITMQ, RATE, STOCK), 3),
    Gate("processed-2", "peers", "the same with 2 processes each", ratio(RABBITMQ, TWO, STOCK), 4),
    Gate(
        "cpu", "peers", "RabbitMQ: worker CPU a job, to stock", ratio(RABBITMQ, CPU, STOCK), 0.5, least=False
    ),
    Gate(
        "send",
        "peers",
        "RabbitMQ: `send`, each confirmed, to stock with confirms",
        ratio(RABBITMQ, SEND, CONFIRMED),
        0.9,
    ),
    Gate(
        "send-8-threads",
        "publishing",
        "RabbitMQ: sends of 8 threads, to one thread with a window of 8",
        median("driver, 8 threads to pika, 1 thread, window of 8", "measured"),
        0.75,
    ),
    Gate(
        "send-32-threads",
        "publishing",
        "RabbitMQ: sends of 32 threads, to those of one",
        median("driver, 32 threads to driver, 1 thread", "measured"),
        8,
    ),
    Gate(
        "send-many",
        "publishing",
        "RabbitMQ: `send_many`, to a C client with a window of 500",
        median(_TO_C_CLIENT, "measured"),
        0.6,
    ),
    Gate(
        "send-many-bullmq",
        "peers",
        "RabbitMQ: `send_many`, to BullMQ's `addBulk`",
        ratio(RABBITMQ, MANY, BULLMQ),
        1,
    ),
    Gate(
        "latency-p50",
        "peers",
        "RabbitMQ: latency at 100 jobs/s, p50, to stock's",
        ratio(RABBITMQ, P50, STOCK),
        1,
        least=False,
    ),
    Gate(
        "latency-p99",
        "peers",
        "RabbitMQ: latency, p99 to its p50",
        ratio(RABBITMQ, P99, RABBITMQ, P50),
        2,
        least=False,
    ),
    *_far_future(),
    *_many_queues(),
    *_growth(),
    Gate(
        "redis-processed",
        "peers",
        "Redis: processed, to stock Dramatiq on Redis",
        ratio(REDIS, RATE, STOCK_REDIS),
        3,
    ),
    Gate("file-processed", "peers", "file: processed, to huey on SQLite", ratio(FILE, RATE, HUEY), 4),
    Gate("file-send", "peers", "file: `send`, to huey's", ratio(FILE, SEND, HUEY), 1),
    Gate("file-send-many", "peers", "file: `send_many`, to huey's send", ratio(FILE, MANY, HUEY, SEND), 10),
    Gate("file-p50", "peers", "file: latency, p50", median(FILE, P50), 5, least=False, unit=" ms"),
    Gate(
        "promises",
        "promises",
        "RabbitMQ: processed with every promise on, to the driver alone (claim and ack in a loop)",
        ratio("+ leases", RATE, "the driver: claim and ack"),
        0.7,
    ),
    *(
        Gate(
            f"mixed-{short}",
            "mixed",
            f"{name.removeprefix('callboard, ')}: jobs of mixed lengths over two processes, less to more busy",
            median(name, "less to more busy"),
            0.8,
        )
        for short, name in _ALL.items()
    ),
)

AIMS: tuple[Gate, ...] = (
    Gate(
        "aim-processed", "peers", "RabbitMQ: processed, to stock", ratio(RABBITMQ, RATE, STOCK), 5, aim=True
    ),
    Gate(
        "aim-processed-bullmq",
        "peers",
        "RabbitMQ: processed, to BullMQ",
        ratio(RABBITMQ, RATE, BULLMQ),
        1,
        aim=True,
    ),
    Gate(
        "aim-processed-2", "peers", "2 processes, to 2 of BullMQ", ratio(RABBITMQ, TWO, BULLMQ), 2, aim=True
    ),
    Gate(
        "aim-cpu",
        "peers",
        "worker CPU a job, to BullMQ's",
        ratio(RABBITMQ, CPU, BULLMQ),
        1,
        least=False,
        aim=True,
    ),
    Gate(
        "aim-send-many",
        "publishing",
        "`send_many`, to a C client with a window of 500",
        median(_TO_C_CLIENT, "measured"),
        0.8,
        aim=True,
    ),
    Gate(
        "aim-p50",
        "peers",
        "RabbitMQ: latency, p50",
        median(RABBITMQ, P50),
        1,
        least=False,
        unit=" ms",
        aim=True,
    ),
    Gate(
        "aim-far-p50",
        "far-future",
        "RabbitMQ: how late near jobs are, p50",
        median(RABBITMQ, "late p50 ms"),
        40,
        least=False,
        unit=" ms",
        aim=True,
    ),
    Gate(
        "aim-far-p99",
        "far-future",
        "RabbitMQ: how late near jobs are, p99",
        median(RABBITMQ, "late p99 ms"),
        94,
        least=False,
        unit=" ms",
        aim=True,
    ),
    Gate(
        "aim-redis",
        "peers",
        "Redis: processed, to stock Dramatiq's",
        ratio(REDIS, RATE, STOCK_REDIS),
        5,
        aim=True,
    ),
    Gate(
        "aim-promises",
        "promises",
        "RabbitMQ: processed with every promise on, to a worker without middleware",
        ratio("+ leases", RATE, "a worker, no middleware"),
        0.7,
        aim=True,
    ),
    Gate("aim-file", "peers", "file: processed", median(FILE, RATE), 20_000, unit=" /s", aim=True),
)


def in_the_way() -> dict[str, str]:
    """What was written about gates that aren't met, by key."""
    texts: dict[str, str] = tomllib.loads(IN_THE_WAY.read_text())
    return {key: " ".join(text.split()) for key, text in texts.items()}


def table(gates: tuple[Gate, ...], figures: Found, texts: Mapping[str, str], heading: str) -> str:
    """Asked, found, met or not, and what is in the way."""
    lines = [f"| {heading} | asked | found | | what is in the way |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(gate.row(figures, texts) for gate in gates)])
