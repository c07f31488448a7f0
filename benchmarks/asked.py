"""What is asked of Callboard, and the aims beyond that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.gates import Gate, difference, median, ratio

FILE, RABBITMQ, REDIS = "callboard, file", "callboard, RabbitMQ", "callboard, Redis"
STOCK, CONFIRMED, STOCK_REDIS = "dramatiq, RabbitMQ", "dramatiq, RabbitMQ, confirms", "dramatiq, Redis"
HUEY, BULLMQ = "huey, SQLite (at most once)", "BullMQ, Redis (Node)"
RATE, TWO, CPU, SEND, MANY = "processed /s", "2 processes /s", "CPU s per 10k", "send /s", "send_many /s"
P50, P99 = "p50 ms", "p99 ms"


_TO_C_CLIENT = "send_many of 1000 to C client, window of 500"

_at_most = partial(Gate, least=False)


def _each(make: Callable[[str, str, str], Iterable[Gate]]) -> list[Gate]:
    """Gates of each driver. `make` gets the part of their keys, the row of their figures, and the broker's name."""
    rows = {"file": FILE, "rabbitmq": RABBITMQ, "redis": REDIS}
    return [gate for key, row in rows.items() for gate in make(key, row, row.removeprefix("callboard, "))]


def _far_future(key: str, row: str, on: str) -> Iterable[Gate]:
    name = "far-future"
    ran = f"{on}: of 1,000 near jobs behind 100,000 far ones, run"
    yield Gate(f"far-{key}-run", name, ran, median(row, "run"), 1_000)
    late = median(row, "late p99 ms")
    yield _at_most(f"far-{key}-p99", name, f"{on}: how late those are, p99", late, 200, unit=" ms")
    grown = difference(row, "RSS MB after", "RSS MB before")
    yield _at_most(
        f"far-{key}-memory", name, f"{on}: what the worker's memory grew by", grown, 10, unit=" MB"
    )


def _idle(key: str, row: str, on: str) -> Iterable[Gate]:
    what = f"{on}: CPU of an idle worker, 24 queues"
    yield _at_most(f"idle-{key}", "many-queues", what, median(row, "idle CPU %"), 1, unit=" %")


def _growth(key: str, row: str, on: str) -> Iterable[Gate]:
    yield Gate(
        f"growth-{key}-backlog",
        "growth",
        f"{on}: rate behind 1,000,000 jobs, to that behind 10,000",
        ratio(row, "1,000,000 waiting /s", row, "10,000 waiting /s"),
        0.8,
    )
    yield Gate(
        f"growth-{key}-queues",
        "growth",
        f"{on}: rate of 24 queues, to that of one",
        ratio(row, "24 queues /s", row, "one queue /s"),
        0.9,
    )


def _mixed(key: str, row: str, on: str) -> Iterable[Gate]:
    what = f"{on}: jobs of mixed lengths over two processes, less to more busy"
    yield Gate(f"mixed-{key}", "mixed", what, median(row, "less to more busy"), 0.8)


GATES: tuple[Gate, ...] = (
    Gate("processed", "peers", "RabbitMQ: processed, to stock Dramatiq", ratio(RABBITMQ, RATE, STOCK), 3),
    Gate("processed-2", "peers", "the same with 2 processes each", ratio(RABBITMQ, TWO, STOCK), 4),
    _at_most("cpu", "peers", "RabbitMQ: worker CPU a job, to stock", ratio(RABBITMQ, CPU, STOCK), 0.5),
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
    _at_most(
        "latency-p50",
        "peers",
        "RabbitMQ: latency at 100 jobs/s, p50, to stock's",
        ratio(RABBITMQ, P50, STOCK),
        1,
    ),
    _at_most(
        "latency-p99", "peers", "RabbitMQ: latency, p99 to its p50", ratio(RABBITMQ, P99, RABBITMQ, P50), 2
    ),
    *_each(_far_future),
    _at_most(
        "connections",
        "many-queues",
        "RabbitMQ: connections of a process, 24 queues",
        median(RABBITMQ, "connections"),
        2,
    ),
    *_each(_idle),
    *_each(_growth),
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
    _at_most("file-p50", "peers", "file: latency, p50", median(FILE, P50), 5, unit=" ms"),
    Gate(
        "promises",
        "promises",
        "RabbitMQ: processed with every promise on, to the driver alone (claim and ack in a loop)",
        ratio("+ leases", RATE, "the driver: claim and ack"),
        0.7,
    ),
    *_each(_mixed),
)

AIMS: tuple[Gate, ...] = (
    Gate("aim-processed", "peers", "RabbitMQ: processed, to stock", ratio(RABBITMQ, RATE, STOCK), 5),
    Gate("aim-processed-bullmq", "peers", "RabbitMQ: processed, to BullMQ", ratio(RABBITMQ, RATE, BULLMQ), 1),
    Gate("aim-processed-2", "peers", "2 processes, to 2 of BullMQ", ratio(RABBITMQ, TWO, BULLMQ), 2),
    _at_most("aim-cpu", "peers", "worker CPU a job, to BullMQ's", ratio(RABBITMQ, CPU, BULLMQ), 1),
    Gate(
        "aim-send-many",
        "publishing",
        "`send_many`, to a C client with a window of 500",
        median(_TO_C_CLIENT, "measured"),
        0.8,
    ),
    _at_most("aim-p50", "peers", "RabbitMQ: latency, p50", median(RABBITMQ, P50), 1, unit=" ms"),
    _at_most(
        "aim-far-p50",
        "far-future",
        "RabbitMQ: how late near jobs are, p50",
        median(RABBITMQ, "late p50 ms"),
        40,
        unit=" ms",
    ),
    _at_most(
        "aim-far-p99",
        "far-future",
        "RabbitMQ: how late near jobs are, p99",
        median(RABBITMQ, "late p99 ms"),
        94,
        unit=" ms",
    ),
    Gate("aim-redis", "peers", "Redis: processed, to stock Dramatiq's", ratio(REDIS, RATE, STOCK_REDIS), 5),
    Gate(
        "aim-promises",
        "promises",
        "RabbitMQ: processed with every promise on, to a worker without middleware",
        ratio("+ leases", RATE, "a worker, no middleware"),
        0.7,
    ),
    Gate("aim-file", "peers", "file: processed", median(FILE, RATE), 20_000, unit=" /s"),
)
