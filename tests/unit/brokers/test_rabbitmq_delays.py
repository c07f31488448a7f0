"""The ladder as RabbitMQ walks it: topic exchanges that match patterns, queues that hold back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.brokers.rabbitmq.delays import LEVELS, LONGEST, UNIT, Ladder, destination_of
from callboard.brokers.rabbitmq.script import Script

queue_names = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=40)


class Topics:
    """What a script declares, and where a message then goes."""

    def __init__(self) -> None:
        self.queues: list[tuple[str, str, str]] = []  # from an exchange, by a pattern, to a queue
        self.exchanges: list[tuple[str, str, str]] = []  # the same to an exchange
        self.waits: dict[
            str, tuple[float, str]
        ] = {}  # how long a queue holds a message, and where it goes then

    def perform(self, script: Script[Any]) -> None:
        for request in script:
            name, given = request.func.__name__, request.keywords  # type: ignore[attr-defined]  # partials
            if name == "queue_declare" and "x-message-ttl" in given["arguments"]:
                wait = given["arguments"]["x-message-ttl"] / 1000
                self.waits[given["queue"]] = (wait, given["arguments"]["x-dead-letter-exchange"])
            elif name == "queue_bind":
                self.queues.append((given["exchange"], given.get("routing_key", "#"), given["queue"]))
            elif name == "_bind":
                self.queues += [(given["exchange"], pattern, queue) for pattern, queue in given["queues"]]
            elif name == "exchange_bind":
                self.exchanges.append((given["source"], given["routing_key"], given["destination"]))

    def follow(self, exchange: str, key: str) -> list[tuple[float, str]]:
        """Every queue that a message ends in, with the seconds that it took."""
        ends: list[tuple[float, str]] = []
        for target in self.targets(self.exchanges, exchange, key):
            ends += self.follow(target, key)
        for target in self.targets(self.queues, exchange, key):
            if target in self.waits:
                wait, below = self.waits[target]
                ends += [(wait + later, queue) for later, queue in self.follow(below, key)]
            else:
                ends.append((0.0, target))
        return ends

    def falls(self, exchange: str, key: str) -> int:
        """How many queues hold a message one after the other."""
        falls = 0
        while levels := [q for q in self.targets(self.queues, exchange, key) if q in self.waits]:
            falls += 1
            exchange = self.waits[levels[0]][1]
        return falls

    def targets(self, bindings: list[tuple[str, str, str]], exchange: str, key: str) -> list[str]:
        words = key.split(".")
        return [
            target
            for source, pattern, target in bindings
            if source == exchange and matches(pattern.split("."), words)
        ]


def matches(pattern: list[str], words: list[str]) -> bool:
    """Whether a topic exchange routes a key by a pattern."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])


def ladder_with(*queues: str) -> tuple[Ladder, Topics]:
    ladder, topics = Ladder(""), Topics()
    topics.perform(ladder.declare())
    for queue in queues:
        topics.perform(ladder.bind(queue))
    return ladder, topics


LADDER, TOPICS = ladder_with("email.high", "high", "x.email.high", "email.low", "#", "a%2Eb")


@given(seconds=st.floats(min_value=0.001, max_value=LONGEST))
def test_a_message_arrives_once_never_early_and_at_most_a_unit_late(seconds: float) -> None:
    ends = TOPICS.follow(*LADDER.way("email.high", seconds))
    assert len(ends) == 1
    waited, queue = ends[0]
    assert queue == "email.high"
    assert seconds - 1e-6 <= waited <= seconds + UNIT + 1e-6


@pytest.mark.parametrize("queue", ["email.high", "high", "x.email.high", "email.low", "#", "a%2Eb"])
def test_a_name_that_is_part_of_another_gets_only_its_own(queue: str) -> None:
    assert [end for _, end in TOPICS.follow(*LADDER.way(queue, 3.2))] == [queue]


@given(queue=queue_names)
def test_the_destination_can_be_read_off_the_key(queue: str) -> None:
    assert destination_of(LADDER.way(queue, 60.0)[1]) == queue


@given(units=st.integers(min_value=1, max_value=2**LEVELS - 1))
def test_a_message_falls_once_for_each_bit_of_its_delay(units: int) -> None:
    exchange, key = LADDER.way("email.high", units * UNIT)
    assert TOPICS.falls(exchange, key) == units.bit_count()


def test_a_message_enters_at_its_highest_bit() -> None:
    assert LADDER.way("q", 0.1)[0] == "callboard.delay.00"
    assert LADDER.way("q", 3.2)[0] == "callboard.delay.05"
    assert LADDER.way("q", LONGEST)[0] == f"callboard.delay.{LEVELS - 1}"


def test_a_round_delay_is_not_rounded_up_by_an_error_of_floating_point() -> None:
    assert LADDER.way("q", 0.3) == LADDER.way("q", 0.30000000000000004)


def test_a_delay_beyond_the_ladder_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the longest"):
        LADDER.way("q", LONGEST + UNIT)


def test_a_name_that_fits_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="too long to be delayed"):
        LADDER.way("q" * 200, 1.0)


def test_the_namespace_is_before_everything() -> None:
    ladder, topics = Ladder("shop"), Topics()
    topics.perform(ladder.declare())
    names = {name for source, _, target in topics.queues + topics.exchanges for name in (source, target)}
    assert all(name.startswith("shop.callboard.delay.") for name in names)
    assert ladder.way("shop.email.high", 1.0)[0] == "shop.callboard.delay.03"
