"""Awaited publishing to RabbitMQ: no thread waits, and what is cancelled breaks nothing for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from callboard.brokers.driver import IntakeOptions, Outgoing, PutError
from callboard.brokers.rabbitmq import RabbitmqDriver
from callboard.servers import PrivateRabbitmq

PATIENCE = 30.0

Open = Callable[..., RabbitmqDriver]


@pytest.fixture
def driver(amqp_url: str) -> Iterator[RabbitmqDriver]:
    driver = RabbitmqDriver(amqp_url)
    yield driver
    driver.close()


def message(number: int, queue: str = "mail.high") -> Outgoing:
    return Outgoing(queue, b"%d" % number, f"job-{number}")


def all_bodies(driver: RabbitmqDriver, wanted: int) -> list[int]:
    """What is in the queue, when so many are."""
    hand = driver.open_intake(IntakeOptions(queues=["mail.high"], budget=5000, worker="test"))
    found: list[int] = []
    end = time.monotonic() + PATIENCE
    while len(found) < wanted and time.monotonic() < end:
        for delivery in hand.fetch(1000, 1.0):
            found.append(int(delivery.body))
            hand.ack(delivery)
    assert hand.fetch(1, 0.2) == []
    hand.close()
    return sorted(found)


def test_hundreds_of_sends_on_one_loop_are_confirmed_each_by_itself(driver: RabbitmqDriver) -> None:
    async def put_all() -> None:
        await asyncio.gather(*(driver.put_async([message(n)], deadline=PATIENCE) for n in range(500)))

    asyncio.run(put_all())
    assert all_bodies(driver, 500) == list(range(500))


def test_a_message_too_large_for_amqp_fails_alone(driver: RabbitmqDriver) -> None:
    wrong = Outgoing("mail.high", b"1", "j" * 300)

    async def put_both() -> list[BaseException | None]:
        puts = (driver.put_async([one], deadline=PATIENCE) for one in (message(0), wrong, message(2)))
        return await asyncio.gather(*puts, return_exceptions=True)

    first, error, last = asyncio.run(put_both())
    assert first is None
    assert last is None
    assert isinstance(error, PutError)
    assert error.not_queued == [wrong]
    assert all_bodies(driver, 2) == [0, 2]


def test_sends_that_are_cancelled_leave_the_connection_to_the_others(driver: RabbitmqDriver) -> None:
    driver.put([message(0)], deadline=PATIENCE)

    async def put_and_cancel() -> None:
        kept: list[asyncio.Task[None]] = []
        dropped: list[asyncio.Task[None]] = []
        for number in range(1, 201):
            task = asyncio.create_task(driver.put_async([message(number)], deadline=PATIENCE))
            (kept if number % 2 else dropped).append(task)
            await asyncio.sleep(0)
        for task in dropped:
            task.cancel()
        await asyncio.gather(*kept)
        gone = await asyncio.gather(*dropped, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in gone)

    asyncio.run(put_and_cancel())
    driver.put([message(999)], deadline=PATIENCE)
    odd = {0, 999, *range(1, 201, 2)}
    bodies = all_bodies(driver, len(odd))
    assert odd <= set(bodies)
    assert len(bodies) == len(set(bodies))


def test_a_loop_that_ended_before_its_confirm_does_not_hurt_the_connection(driver: RabbitmqDriver) -> None:
    driver.put([message(0)], deadline=PATIENCE)
    opened = driver._publisher.link.opened

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        settled = loop.create_task(driver.put_async([message(1)], deadline=PATIENCE))
        await asyncio.sleep(0)
        assert not settled.done()

    asyncio.run(leave())
    driver.put([message(2)], deadline=PATIENCE)
    assert {0, 2} <= set(all_bodies(driver, 2))
    assert driver._publisher.link.opened == opened


def test_what_was_cancelled_while_rabbitmq_was_away_is_not_sent_afterwards(
    own_rabbitmq: PrivateRabbitmq,
) -> None:
    driver = RabbitmqDriver(own_rabbitmq.url)
    try:
        driver.put([message(0)], deadline=PATIENCE)
        own_rabbitmq.stop()

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await driver.put_async([message(1)], deadline=PATIENCE)

        asyncio.run(give_up())
        own_rabbitmq.start()
        driver.put([message(2)], deadline=PATIENCE)
        assert all_bodies(driver, 2) == [0, 2]
    finally:
        driver.close()
