"""Where messages wait: one broker with the rules (`base`), on one of several drivers."""

from __future__ import annotations

from pathlib import Path

from callboard.brokers.driver import Driver
from callboard.errors import SettingsError


def open_driver(url: str, *, namespace: str = "", folder: Path | None = None) -> Driver:
    """The driver that a URL names. Connects to nothing, and imports only what it needs.

    Args:
        url: See `CALLBOARD_BROKER_URL`.
        namespace: A prefix for all names.
        folder: What a relative `file:` is relative to: the application's, so that it is the same queue
            wherever a process was started. The current folder by default.

    Raises:
        SettingsError: If no driver goes by that scheme.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "file" and colon:
        from callboard.brokers.file import FileDriver

        place = (folder or Path.cwd()) / (rest.removeprefix("//") or "var")
        return FileDriver(place, namespace=namespace)
    if scheme in ("amqp", "amqps"):
        from callboard.brokers.rabbitmq import RabbitmqDriver

        return RabbitmqDriver(url, namespace=namespace)
    if scheme in ("redis", "rediss", "unix"):
        from callboard.brokers.redis import RedisDriver

        return RedisDriver(url, namespace=namespace)
    if scheme == "stub":
        from callboard.brokers.stub import StubDriver

        return StubDriver()
    raise SettingsError(
        f"CALLBOARD_BROKER_URL begins with '{scheme}:', and there is no such driver; "
        "use amqp://, amqps://, redis://, rediss://, unix://, file:FOLDER or stub:"
    )
