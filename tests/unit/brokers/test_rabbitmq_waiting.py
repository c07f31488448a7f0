from __future__ import annotations

import time
from dataclasses import dataclass, field

from callboard.brokers.driver import Delivery
from callboard.brokers.rabbitmq.delays import LEAD
from callboard.brokers.rabbitmq.waiting import Waiting


@dataclass
class Hold:
    is_open: bool = True
    fetched: int = 0


@dataclass
class Token:
    hold: Hold = field(default_factory=Hold)
    arrived: float = 0.0


def delivery(queue: str, number: int, token: Token | None = None) -> Delivery:
    return Delivery(queue, b"%d" % number, b"", token or Token())


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(found.body) for found in deliveries]


def test_the_more_urgent_comes_first_and_then_the_older() -> None:
    waiting = Waiting()
    for since, (queue, number) in enumerate(
        [("a.low", 1), ("a.high", 2), ("b.high", 3), ("a.critical", 4)], 1
    ):
        waiting.add(delivery(queue, number), since)
    assert numbers(waiting.take(3)) == [4, 2, 3]
    assert numbers(waiting.take(3)) == [1]
    assert not waiting


def test_age_counts_from_when_a_message_was_put_not_from_when_it_came() -> None:
    waiting = Waiting()
    waiting.add(delivery("a.high", 1), 2_000)
    waiting.add(delivery("b.high", 2), 1_000)
    assert numbers(waiting.take(2)) == [2, 1]


def test_every_eighth_is_the_oldest_of_all() -> None:
    waiting = Waiting()
    for number in range(100, 103):
        waiting.add(delivery("a.low", number), number)
    for number in range(40):
        waiting.add(delivery("a.critical", number), 1_000 + number)
    taken = numbers(waiting.take(24))
    assert [taken[7], taken[15], taken[23]] == [100, 101, 102]
    assert taken[:7] == list(range(7))


def test_a_sender_whose_clock_is_fast_does_not_lose_its_turn() -> None:
    waiting = Waiting()
    waiting.add(delivery("a.high", 1), int((time.time() + 3600) * 1e6))
    time.sleep(0.001)
    waiting.add(delivery("a.high", 2), int((time.time() + 3600) * 1e6))
    waiting.add(delivery("a.high", 3), 0)
    assert numbers(waiting.take(3)) == [1, 2, 3]


def test_deliveries_of_a_closed_channel_are_dropped() -> None:
    waiting, gone = Waiting(), Token()
    waiting.add(delivery("a.high", 1, gone), 1)
    waiting.add(delivery("a.high", 2), 2)
    gone.hold.is_open = False
    assert numbers(waiting.take(9)) == [2]


def test_what_is_removed_is_not_taken() -> None:
    waiting = Waiting()
    for number in range(6):
        waiting.add(delivery(f"{'ab'[number % 2]}.high", number), number + 1)
    assert numbers(waiting.remove({"a.high"})) == [0, 2, 4]
    assert numbers(waiting.take(9)) == [1, 3, 5]


def test_what_nobody_fetches_is_found_by_when_it_came() -> None:
    waiting = Waiting()
    waiting.add(delivery("a.high", 1, Token(arrived=10.0)), 5)
    waiting.add(delivery("b.high", 2, Token(arrived=20.0)), 1)
    assert waiting.left_since(15.0) == {"a.high"}
    waiting.take(2)
    assert waiting.left_since(30.0) == set()


def test_each_channel_knows_how_many_of_its_deliveries_were_fetched() -> None:
    waiting, one, other = Waiting(), Token(), Token()
    for number, token in enumerate([one, one, other]):
        waiting.add(delivery("a.high", number, token), number + 1)
    waiting.take(2)
    assert (one.hold.fetched, other.hold.fetched) == (2, 0)


def in_microseconds(seconds: float) -> int:
    return int((time.time() + seconds) * 1e6)


def test_what_is_not_due_yet_is_kept_until_it_is() -> None:
    waiting = Waiting()
    due = in_microseconds(0.03)
    waiting.keep(delivery("a.high", 1, Token(arrived=time.monotonic() + 60)), due)
    while not (found := waiting.take_due()):
        left = waiting.next_due
        assert left is not None
        time.sleep(max(0.0, left))
    assert time.time() * 1e6 >= due
    assert [(int(one.body), since) for one, since in found] == [(1, due)]
    assert waiting.next_due is None


def test_what_is_due_first_is_let_out_first() -> None:
    waiting, token = Waiting(), Token(arrived=time.monotonic() + 60)
    for number, due in enumerate([-0.1, 60.0, -0.3, -0.2]):
        waiting.keep(delivery("a.high", number, token), in_microseconds(due))
    assert [int(found.body) for found, _ in waiting.take_due()] == [2, 3, 0]


def test_a_clock_that_is_behind_keeps_nothing_for_longer_than_the_lead() -> None:
    waiting = Waiting()
    waiting.keep(delivery("a.high", 1, Token(arrived=time.monotonic() - LEAD)), in_microseconds(3600))
    assert numbers([found for found, _ in waiting.take_due()]) == [1]


def test_what_is_kept_cannot_be_fetched_but_removed() -> None:
    waiting, gone = Waiting(), Token()
    waiting.keep(delivery("a.high", 0), in_microseconds(60))
    waiting.keep(delivery("b.high", 1, gone), in_microseconds(60))
    assert not waiting
    assert waiting.take(9) == []
    gone.hold.is_open = False
    assert numbers(waiting.remove_lost()) == [1]
    assert numbers(waiting.remove({"a.high"})) == [0]
    assert waiting.next_due is None
