"""For how long a message may stay unacknowledged: RabbitMQ closes the channel of a consumer that takes longer.

The job then goes to another worker while it still runs here. There it waits (`callboard.worker.redeliveries`), so that
it runs once; but each time costs a channel, and an end that can't be acknowledged.
"""

from __future__ import annotations

from typing import Any

from callboard.loggers import get_logger

log = get_logger(__name__)

#: Seconds that servers allow by default, and that we ask for where it can be asked for.
DEFAULT, ASKED = 30 * 60, 24 * 3600
#: The first version that takes the argument.
_TAKES_IT = (3, 12)


def consumer_arguments(version: tuple[int, ...]) -> dict[str, Any]:
    """What a consumer asks a server of a version for."""
    return {"x-consumer-timeout": ASKED * 1000} if version >= _TAKES_IT else {}


def warn_of_long_jobs(version: tuple[int, ...], actor: str, seconds: float) -> None:
    """Say so if an actor's jobs may run longer than a server of a version allows, as far as one can tell from here."""
    allowed = ASKED if version >= _TAKES_IT else DEFAULT
    if not version or seconds <= allowed:
        return
    log.warning(
        f"'{actor}' may run longer than RabbitMQ's consumer_timeout, which is {allowed // 60} minutes unless the "
        "server's settings say otherwise; set it in rabbitmq.conf above the longest time limit",
        time_limit=seconds,
        version=".".join(map(str, version)),
    )
