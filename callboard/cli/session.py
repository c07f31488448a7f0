"""What a command works with: the application's broker, and the operations on it."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from callboard.brokers.base import Broker
    from callboard.operations import Operations


@dataclass
class Session:
    """The global options of a call."""

    module: str = "broker"

    @contextmanager
    def broker(self, *, quiet: bool = True) -> Iterator[Broker]:
        """The application's broker, with all its actors; closed at the end, when all records are written.

        Raises:
            SettingsError: Its messages wait in this process's memory.
        """
        from callboard.app import load_app

        if quiet:
            _quiet_logs()
        broker = load_app(self.module)
        try:
            _refuse_memory(broker)
            yield broker
        finally:
            broker.close()

    @contextmanager
    def operations(self, *, messages: bool = True) -> Iterator[Operations]:
        """Operations that are audited under the name of the person at the keyboard.

        Whoever wants to know why jobs are dead must not be stopped by an actor that can't be imported: then
        the broker alone is taken.

        Args:
            messages: Whether they are about messages and their records, and not only about what is declared.

        Raises:
            SettingsError: Its messages wait in this process's memory.
        """
        from callboard.app import load_app
        from callboard.brokers.base import Broker
        from callboard.errors import AppError
        from callboard.operations import Operations

        _quiet_logs()
        try:
            broker = load_app(self.module)
        except AppError as error:
            loaded = getattr(sys.modules.get(self.module), "broker", None)
            if not isinstance(loaded, Broker):
                raise
            sys.stderr.write(f"callboard: going on without all actors: {error}\n")
            broker = loaded
        try:
            if messages:
                _refuse_memory(broker)
            yield Operations(broker, who=f"cli:{_user()}")
        finally:
            broker.close()


def _refuse_memory(broker: Broker) -> None:
    if broker.driver.name == "stub":
        refuse_stub()


def refuse_stub() -> NoReturn:
    """A command's own memory is a place where nobody else sees a job, and where it ends with the command."""
    from callboard.errors import SettingsError

    raise SettingsError(
        "stub: keeps messages in this process's memory alone, so no other command or worker sees them, and "
        "they end with it; set CALLBOARD_BROKER_URL=file:var"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _quiet_logs() -> None:
    """Commands tell what matters themselves; what is logged on the way would garble it."""
    import logging

    from callboard.logs import configure_logging

    debug = os.environ.get("CALLBOARD_DEBUG") == "1"
    configure_logging(level="debug" if debug else "critical", style="console")
    if not debug:
        logging.disable()  # not by levels alone: a driver may set that of a library
