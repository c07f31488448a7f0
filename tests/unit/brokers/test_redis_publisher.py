"""How senders share one connection, and what they are told of what became of their messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from callboard.brokers.driver import Outgoing, PutError
from callboard.brokers.redis import publisher
from callboard.brokers.redis.publisher import Publisher
from callboard.redis.outage import Refused, Unreachable

PATIENCE = 30.0

Run = Callable[[str, Any, Sequence[bytes]], bytes]


class FakeLink:
    """A connection whose answers a test writes: one function for each call, the last for all that follow."""

    def __init__(self, *runs: Run, up: bool = True) -> None:
        self.address = "host:6379"
        self.is_up = up
        self.runs = list(runs)
        self.calls: list[tuple[str, Any, Sequence[bytes]]] = []
        self.closed = False

    def connect(self, until: float) -> None:
        if not self.is_up:
            raise Unreachable("Redis at host:6379 is away", sent=False)

    def pause(self) -> float:
        return 0.01

    def run(self, name: str, order: Any, contents: Sequence[bytes] = (), *, until: float) -> bytes:
        self.calls.append((name, order, contents))
        run = self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]
        return run(name, order, contents)

    def close(self) -> None:
        self.closed = True

    @property
    def numbers(self) -> list[int]:
        return [order[1] for _, order, _ in self.calls]


def done(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
    return b""


def lost(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
    raise Unreachable("Redis at host:6379 is away: it closed the connection", sent=True)


def full(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
    raise Refused("Redis at host:6379 has used all the memory")


def read_only(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
    raise Refused("Redis at host:6379 can't do it just now", passing=True)


def make(*runs: Run, up: bool = True) -> tuple[Publisher, FakeLink]:
    link = FakeLink(*runs, up=up)
    return Publisher(link), link  # type: ignore[arg-type]


def message(number: int, size: int = 10) -> Outgoing:
    return Outgoing("mail.high", b"x" * size, f"job-{number}")


def test_a_call_whose_answer_was_lost_is_repeated_under_its_number() -> None:
    subject, link = make(lost, lost, done)
    subject.put([message(1)], deadline=PATIENCE)
    assert link.numbers == [1, 1, 1]


def test_what_was_never_written_is_not_queued() -> None:
    subject, _ = make(done, up=False)
    outgoing = [message(1), message(2)]
    with pytest.raises(PutError, match="is away") as caught:
        subject.put(outgoing, deadline=0.05)
    assert caught.value.not_queued == outgoing
    assert caught.value.unknown == []


def test_what_was_written_and_never_answered_is_unknown() -> None:
    subject, link = make(lost)
    outgoing = [message(1)]
    with pytest.raises(PutError, match="closed the connection") as caught:
        subject.put(outgoing, deadline=0.05)
    assert caught.value.unknown == outgoing
    assert caught.value.not_queued == []
    link.runs[:] = [done]
    subject.put([message(2)], deadline=PATIENCE)
    assert link.numbers[-1] > link.numbers[0]  # so the one that was given up can't come after it
    assert len(link.calls[-1][2]) == 1


def test_a_refusal_that_lasts_is_told_at_once() -> None:
    subject, _ = make(full)
    started = time.monotonic()
    with pytest.raises(PutError, match="all the memory") as caught:
        subject.put([message(1)], deadline=PATIENCE)
    assert time.monotonic() - started < PATIENCE / 2
    assert len(caught.value.not_queued) == 1


def test_a_refusal_after_a_lost_answer_leaves_the_fate_unknown() -> None:
    subject, _ = make(lost, full)
    with pytest.raises(PutError) as caught:
        subject.put([message(1)], deadline=PATIENCE)
    assert len(caught.value.unknown) == 1


def test_a_refusal_that_passes_is_waited_out() -> None:
    subject, link = make(read_only, read_only, done)
    subject.put([message(1)], deadline=PATIENCE)
    assert len(link.calls) == 3


def test_a_refusal_that_does_not_pass_in_time_is_not_queued() -> None:
    subject, _ = make(read_only)
    with pytest.raises(PutError, match="just now") as caught:
        subject.put([message(1)], deadline=0.05)
    assert len(caught.value.not_queued) == 1


def test_whoever_comes_while_another_talks_goes_along_in_the_next_call() -> None:
    talking, go_on = threading.Event(), threading.Event()

    def slow(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
        talking.set()
        assert go_on.wait(PATIENCE)
        return b""

    subject, link = make(slow, done)
    threads = [threading.Thread(target=subject.put, args=[[message(n)], PATIENCE]) for n in range(6)]
    threads[0].start()
    assert talking.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    end = time.monotonic() + PATIENCE
    while len(subject._queue) < 5 and time.monotonic() < end:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [len(contents) for _, _, contents in link.calls] == [1, 5]


def test_whoever_is_late_leaves_and_the_others_go_on() -> None:
    talking, go_on = threading.Event(), threading.Event()

    def slow(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
        talking.set()
        assert go_on.wait(PATIENCE)
        return b""

    subject, link = make(slow, done)
    first = threading.Thread(target=subject.put, args=[[message(1)], PATIENCE])
    first.start()
    assert talking.wait(PATIENCE)
    with pytest.raises(PutError, match="busy for longer") as caught:
        subject.put([message(2)], deadline=0.05)
    assert len(caught.value.not_queued) == 1
    go_on.set()
    first.join(PATIENCE)
    subject.put([message(3)], deadline=PATIENCE)
    assert [len(contents) for _, _, contents in link.calls] == [1, 1]


def test_exchanges_and_puts_do_not_go_in_one_call() -> None:
    """A put is refused while Redis is out of memory, and an exchange isn't."""
    talking, go_on = threading.Event(), threading.Event()

    def slow(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
        talking.set()
        assert go_on.wait(PATIENCE)
        return b""

    subject, link = make(slow, done)
    threads = [threading.Thread(target=subject.put, args=[[message(0)], PATIENCE])]
    threads += [
        threading.Thread(target=subject.exchange, args=[message(n), "w", str(n), PATIENCE]) for n in (1, 2)
    ]
    threads.append(threading.Thread(target=subject.put, args=[[message(3)], PATIENCE]))
    threads[0].start()
    assert talking.wait(PATIENCE)
    for count, thread in enumerate(threads[1:], 1):
        thread.start()
        end = time.monotonic() + PATIENCE
        while len(subject._queue) < count and time.monotonic() < end:
            time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [(name, len(contents)) for name, _, contents in link.calls] == [
        ("put", 1),
        ("exchange", 2),
        ("put", 1),
    ]


def test_an_exchange_whose_claim_is_gone_says_so() -> None:
    subject, _ = make(lambda *_: b"1")
    assert not subject.exchange(message(1), "w", "17", PATIENCE)
    subject, _ = make(done)
    assert subject.exchange(message(1), "w", "17", PATIENCE)


def test_much_goes_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_MOST_MESSAGES", 100)
    monkeypatch.setattr(publisher, "_MOST_BYTES", 5000)
    subject, link = make(done)
    subject.put([message(n, size=10) for n in range(250)], deadline=PATIENCE)
    assert [len(contents) for _, _, contents in link.calls] == [100, 100, 50]
    link.calls.clear()
    subject.put([message(n, size=2000) for n in range(5)], deadline=PATIENCE)
    assert [len(contents) for _, _, contents in link.calls] == [2, 2, 1]
    link.calls.clear()
    subject.put([message(1, size=20_000), message(2)], deadline=PATIENCE)
    assert [len(contents) for _, _, contents in link.calls] == [1, 1]


def test_of_much_that_is_partly_put_the_error_tells_which() -> None:
    subject, _ = make(done, full)
    outgoing = [message(n) for n in range(2500)]
    with pytest.raises(PutError) as caught:
        subject.put(outgoing, deadline=PATIENCE)
    assert caught.value.not_queued == outgoing[1000:]


def test_an_interrupted_sender_leaves_the_others_their_turn() -> None:
    class TimeLimit(BaseException):
        pass

    def interrupted(name: str, order: Any, contents: Sequence[bytes]) -> bytes:
        raise TimeLimit

    subject, link = make(interrupted, done)
    with pytest.raises(TimeLimit):
        subject.put([message(1)], deadline=PATIENCE)
    subject.put([message(2)], deadline=PATIENCE)
    assert link.numbers == [1, 2]


def test_a_closed_publisher_queues_nothing() -> None:
    subject, link = make(done)
    subject.close()
    assert link.closed
    with pytest.raises(PutError, match="closed by its owner") as caught:
        subject.put([message(1)], deadline=PATIENCE)
    assert len(caught.value.not_queued) == 1
