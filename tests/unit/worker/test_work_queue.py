"""The hand-off between the thread that claims and those that run."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from callboard.worker.work_queue import WorkQueue
from tests.unit.worker.conftest import PATIENCE


def _message(name: str, queue: str = "jobs.medium") -> Any:
    return SimpleNamespace(message_id=name, queue_name=queue)


def _filled(*names_and_queues: str) -> WorkQueue:
    work = WorkQueue()
    for text in names_and_queues:
        name, _, word = text.partition(":")
        work.put(_message(name, f"jobs.{word or 'medium'}"))
    return work


def _taken(work: WorkQueue, count: int) -> list[str]:
    found = [work.get() for _ in range(count)]
    return [message.message_id for message in found if message is not None]


def test_the_most_urgent_goes_first_and_among_equals_the_oldest() -> None:
    work = _filled("a:low", "b:medium", "c:critical", "d:high", "e:critical", "f:low")
    assert _taken(work, 6) == ["c", "e", "d", "b", "a", "f"]


def test_every_eighth_is_the_one_that_has_waited_longest() -> None:
    work = _filled("old:low", "older-than-most:medium", *(f"{n}:critical" for n in range(20)))
    taken = _taken(work, 22)
    assert taken[7] == "old"
    assert taken[15] == "older-than-most"
    assert [name for name in taken if name.isdigit()] == [str(n) for n in range(20)]


def test_a_thread_that_waits_is_woken_and_all_are_let_go_at_the_end() -> None:
    work, got, idle = WorkQueue(), [], threading.Semaphore(0)
    work = WorkQueue(on_idle=idle.release)

    def take() -> None:
        while (message := work.get()) is not None:
            got.append(message.message_id)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert idle.acquire(timeout=PATIENCE)
    for n in range(100):
        work.put(_message(str(n)))
    while len(work):
        assert idle.acquire(timeout=PATIENCE)
    work.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(got, key=int) == [str(n) for n in range(100)]


def test_no_message_is_missed_and_none_is_taken_twice_by_many_threads() -> None:
    work, got = WorkQueue(), []

    def take() -> None:
        while (message := work.get()) is not None:
            got.append(message.message_id)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for n in range(5000):
        work.put(_message(str(n), f"jobs.{('low', 'high')[n % 2]}"))
    left = [message.message_id for message in work.close()]
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(got + left, key=int) == [str(n) for n in range(5000)]


def test_what_is_given_up_is_the_least_urgent_and_of_that_the_newest() -> None:
    work = _filled("a:low", "b:low", "c:high", "d:critical")
    assert [message.message_id for message in work.give_up(3)] == ["b", "a", "c"]
    assert _taken(work, 1) == ["d"]


def test_closing_returns_what_nobody_took() -> None:
    work = _filled("a:low", "b:critical")
    assert {message.message_id for message in work.close()} == {"a", "b"}
    assert work.get() is None
    assert len(work) == 0


def test_how_long_the_oldest_has_waited_is_known() -> None:
    work = _filled()
    assert work.longest_wait() == 0
    work.put(_message("a", "jobs.low"))
    first = work.longest_wait()
    work.put(_message("b", "jobs.high"))
    assert work.longest_wait() >= first
    work.close()
    assert work.longest_wait() == 0
