"""The event loop that all async actors of a process share. No job of them ends it for the others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable
from concurrent.futures import wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

from dramatiq.asyncio import EventLoopThread
from dramatiq.middleware import Interrupt

from callboard.errors import CallboardError
from callboard.loggers import get_logger

R = TypeVar("R")
_Outcome = tuple[Any, BaseException | None]  # of a coroutine: its result, or what it raised

log = get_logger(__name__)

#: Seconds between two looks at whether the loop still is there; in between, an interrupt waits.
_LOOK_SECONDS = 0.1
#: Seconds that an interrupted coroutine has to clean up.
_CLEANUP_SECONDS = 1.0


class EventLoopBroke(CallboardError, RuntimeError):
    """The event loop in which an async job ran can't go on. The process has a new one for the next jobs."""


class JobLoopThread(EventLoopThread):
    """Dramatiq's event loop thread, which outlives what jobs do to it.

    A job that calls `sys.exit()` fails, as one that isn't async does. Where something stops the loop, it goes
    on; where it breaks, because a job closed its file descriptors, say, what ran in it fails and a new loop
    takes its place. The thread ends with its process, and at `stop`.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, interrupt_check_ival=_LOOK_SECONDS)
        self.daemon = True
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # of a task or a callback: the loop is whole
                log.warning("a task of an async job wanted to end the process", error=repr(error))
            except BaseException:  # whatever it is, the next jobs need a loop
                log.exception("the event loop of async jobs broke: they fail, the next ones have a new one")
                self._renew()
        with suppress(Exception):
            self.loop.close()

    def stop(self) -> None:
        self._ending.set()
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()

    def run_coroutine(self, coro: Awaitable[R]) -> R:
        """Run a coroutine in the loop, and wait for it. An interrupt of the waiting thread cancels it.

        Raises:
            EventLoopBroke: The loop went away under it.
            BaseException: Whatever the coroutine raises.
        """
        loop, contained = self.loop, _Contained(coro)
        try:
            outcome = self._wait(contained, loop)
        except Interrupt as interrupt:
            with suppress(RuntimeError):  # no loop, nothing to cancel
                loop.call_soon_threadsafe(contained.cancel)
            if not contained.finished.wait(timeout=_CLEANUP_SECONDS):
                raise RuntimeError("Timed out while waiting for coroutine.") from interrupt
            raise
        result: R
        result, error = outcome
        if error is None:
            return result
        try:
            raise error
        finally:
            del outcome, error  # its traceback has this frame

    def _wait(self, contained: _Contained[R], loop: asyncio.AbstractEventLoop) -> _Outcome:
        running = contained.run()
        try:
            future = asyncio.run_coroutine_threadsafe(running, loop)
        except RuntimeError as closed:
            running.close()
            raise self._broke() from closed
        while not future.done():
            # Not for ever: an exception that is raised in this thread waits for Python code.
            wait([future], timeout=self.interrupt_check_ival)
            if not future.done() and (self.loop is not loop or loop.is_closed() or not self.is_alive()):
                raise self._broke()
        return future.result(timeout=0)

    def _broke(self) -> EventLoopBroke:
        return EventLoopBroke(
            "The event loop of this process's async jobs broke or ended while this job ran in it. The log says"
            " why; a usual cause is a job that closes file descriptors which aren't its own."
        )

    def _renew(self) -> None:
        with suppress(Exception):  # its file descriptors may be gone; close it first, they may come again
            self.loop.close()
        while not self._ending.is_set():
            try:
                self.loop = asyncio.new_event_loop()
            except OSError as error:  # no file descriptors are left
                log.warning("no new event loop for async jobs, trying again", error=str(error))
                self._ending.wait(1.0)
            else:
                return


class _Contained(Generic[R]):
    """A job's coroutine, of which the loop sees no exception but that it was cancelled."""

    def __init__(self, coro: Awaitable[R]) -> None:
        self.finished = threading.Event()
        self._coro = coro
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    async def run(self) -> _Outcome:
        """Returns what it raises: asyncio lets some exceptions through to the loop's thread, and remakes others."""
        self._task = asyncio.current_task()
        if self._is_cancelled:
            self.cancel()
        try:
            return await self._coro, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  whatever a job raises is its own failure
            return None, error
        finally:
            self._task = None  # it holds the error, whose traceback has us
            self.finished.set()

    def cancel(self) -> None:
        """To be called in the loop; before the coroutine has begun, too."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()
