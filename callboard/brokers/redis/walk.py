"""A walk: one pass over the messages of a queue, page by page, each page's verdicts in one script.

What is kept isn't touched. Two walks never overlap: each holds the queue's lock in Redis, and proves by a connection
of its own that it lives, so that the lock of one that was killed is free at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from callboard.brokers.driver import Decide, Outgoing, Verdict, WalkReport
from callboard.brokers.redis.messages import due_of, pack, unpack_stored
from callboard.errors import BrokerUnavailable
from callboard.redis.bell import Bell
from callboard.redis.link import channel_of

if TYPE_CHECKING:
    from callboard.brokers.redis.driver import RedisDriver

PATIENCE = 30.0  # seconds to wait for another walk to end
_ANSWER = 10.0  # seconds
_PAGE = 100
_RENEWAL = 20.0  # seconds after which a slow page shows that the walk goes on


class Walk:
    """One walk over one queue. Use it in a `with`.

    Raises:
        BrokerUnavailable: Redis is away, or another walk over the queue doesn't end.
    """

    def __init__(self, driver: RedisDriver, queue: str) -> None:
        self._driver = driver
        self._queue = queue
        self._token = secrets.token_hex(8)
        self._link = driver.new_link(f"walk:{queue}")
        self._proof = Bell(driver.new_link(f"walk:{queue}:proof"))
        self._report = WalkReport()
        self._renewed = 0.0

    def __enter__(self) -> Walk:
        try:
            self._proof.listen(
                channel_of(self._driver.namespace, "walk", self._token), time.monotonic() + _ANSWER
            )
            self._lock()
        except BaseException:
            self._hang_up()
            raise
        return self

    def _lock(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self._step("lock"):
            if time.monotonic() > end:
                raise BrokerUnavailable(
                    f"another walk over '{self._queue}' is under way; try again when it has ended"
                )
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        try:
            self._step("unlock")
        except BrokerUnavailable:
            pass  # the lock ends with the connection
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        self._link.close()
        self._proof.close()

    def go(self, decide: Decide, progress: Callable[[int, int], None] | None) -> WalkReport:
        """Make the pass."""
        total, last = self._step("extent")
        place = b"0"
        while True:
            found, values = self._step("page", place, last, _PAGE)
            if not found:
                return self._report
            place = found[-1]
            self._walk_page(found[::2], values, decide)
            if progress is not None:
                progress(self._report.seen, max(total, self._report.seen))

    def _walk_page(self, ids: list[bytes], values: list[bytes | None], decide: Decide) -> None:
        verdicts: list[tuple[bytes, Outgoing | None]] = []
        try:
            for id_, value in zip(ids, values, strict=True):
                if value is None:
                    continue
                verdict = decide(unpack_stored(self._queue, value))
                self._report.seen += 1
                if verdict is Verdict.KEEP:
                    self._report.kept += 1
                else:
                    verdicts.append((id_, verdict if isinstance(verdict, Outgoing) else None))
                self._renew()
        finally:
            if verdicts:
                self._carry_out(verdicts)

    def _carry_out(self, verdicts: list[tuple[bytes, Outgoing | None]]) -> None:
        changes: list[tuple[str, object]] = []
        values: list[bytes] = []
        for id_, outgoing in verdicts:
            target: object = 0
            if outgoing is not None:
                target = (outgoing.queue, due_of(outgoing))
                values.append(pack(outgoing))
            changes.append((id_.decode(), target))
        # What a worker has claimed or another has purged since the page was read is left alone.
        done = [verdicts[number - 1][1] for number in self._step("change", *changes, contents=values)]
        moved = sum(outgoing is not None for outgoing in done)
        self._report.moved += moved
        self._report.discarded += len(done) - moved
        self._report.kept += len(verdicts) - len(done)

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > _RENEWAL:
            self._step("extent")

    def _step(self, step: str, *rest: Any, contents: list[bytes] | None = None) -> Any:
        parts = [part.decode() if isinstance(part, bytes) else part for part in rest]
        self._renewed = time.monotonic()
        try:
            answer = self._link.run(
                "walk",
                (self._queue, self._token, step, *parts),
                contents or (),
                until=time.monotonic() + _ANSWER,
            )
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"the walk over '{self._queue}' was interrupted: {error}; nothing is lost, walk again"
            ) from error
        if answer is None:
            raise BrokerUnavailable(
                f"the walk over '{self._queue}' was cut off and lost its lock; nothing is lost, walk again"
            )
        return answer
