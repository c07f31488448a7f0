"""What is asked of servers about jobs that take long, and when people are warned."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from callboard.brokers.rabbitmq.consumer_timeout import consumer_arguments, warn_of_long_jobs


@pytest.mark.parametrize(
    ("version", "seconds", "warned"),
    [
        ((3, 10, 8), 1800, False),
        ((3, 10, 8), 1801, True),
        ((3, 10, 8), float("inf"), True),
        ((3, 12, 0), 7200, False),
        ((4, 1, 0), 86_401, True),
        ((), 7200, False),
    ],
)
def test_whoever_declares_a_longer_job_is_warned(
    version: tuple[int, ...], seconds: float, warned: bool
) -> None:
    with capture_logs() as lines:
        warn_of_long_jobs(version, "train-model", seconds)
    assert bool(lines) is warned


def test_servers_that_take_it_are_asked_for_a_day() -> None:
    assert consumer_arguments((3, 11, 28)) == {}
    assert consumer_arguments((3, 12, 0)) == consumer_arguments((4, 1)) == {"x-consumer-timeout": 86_400_000}
