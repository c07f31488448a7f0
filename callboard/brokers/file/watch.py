"""The watch for workers that have died. One for all intakes of a process."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from callboard.brokers.file import workers
from callboard.loggers import get_logger

if TYPE_CHECKING:
    from callboard.brokers.file.driver import FileDriver

log = get_logger(__name__)

_INTERVAL = 0.25  # seconds between two looks at the locks
_ROLL_CALL = 10.0  # seconds between two looks for workers that have no lock file
_TRANSACTION = 5.0  # seconds within which a rescue gets its turn


class DeathWatch:
    """Finds dead workers, and lets everybody have their claims."""

    def __init__(self, driver: FileDriver) -> None:
        self._driver = driver
        self._next_roll_call = 0.0
        #: When it is time to look, in seconds of `time.monotonic`.
        self.next = 0.0

    def look(self) -> None:
        """Look, if it is time.

        Raises:
            BrokerUnavailable, OSError
        """
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + _INTERVAL
        numbers = workers.present(self._driver.workers_folder)
        ours = {intake.still_registered(numbers) for intake in self._driver.open_intakes}
        if suspects := workers.suspects(self._driver.workers_folder, numbers - ours):
            self._bury(suspects)
        elif now >= self._next_roll_call:
            self.call_the_roll()

    def call_the_roll(self) -> None:
        """Look at everybody: some of the dead may have left no file, in a folder that was restored."""
        self._next_roll_call = time.monotonic() + _ROLL_CALL
        self._bury(None)

    def _bury(self, suspects: Collection[int] | None) -> None:
        driver = self._driver
        dead = driver.writer.run(
            lambda connection: workers.bury(connection, driver.workers_folder, suspects),
            durable=False,
            until=time.monotonic() + _TRANSACTION,
        )
        if dead.messages:
            log.warning("workers_rescued", workers=dead.names, messages=dead.messages)
            driver.ring(dead.queues, dead.messages)
