"""Messages on their way through a driver, in the hands of a test."""

from __future__ import annotations

import time
from collections.abc import Sequence

from callboard.brokers.driver import Delivery, Driver, Intake, Outgoing, StoredMessage
from tests.patience import PATIENCE


def message(
    number: int, queue: str = "mail.high", *, delay: float | None = None, headers: bytes | None = None
) -> Outgoing:
    """One that is known by its number, and by its headers; due after `delay` seconds, or at once."""
    headers = b"h%d" % number if headers is None else headers
    due = None if delay is None else time.time() + delay
    return Outgoing(queue, b"%d" % number, f"job-{number}", headers, due)


def put(driver: Driver, *numbers: int) -> None:
    """Queue those with these numbers."""
    driver.put([message(number) for number in numbers], deadline=PATIENCE)


def take(intake: Intake, wanted: int, *, limit: int = 1000) -> list[Delivery]:
    """Fetch until so many are here, at most `limit` at once."""
    found: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    while len(found) < wanted and time.monotonic() < end:
        found += intake.fetch(min(limit, wanted - len(found)), 1.0)
    assert len(found) == wanted, f"{len(found)} of {wanted} messages came"
    return found


def numbers(messages: Sequence[Delivery | StoredMessage]) -> list[int]:
    """The numbers of some."""
    return [int(found.body) for found in messages]


def ready(driver: Driver, queue: str = "mail.high") -> int:
    """How many can be claimed now."""
    return driver.counts([queue])[queue].ready
