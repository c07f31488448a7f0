"""Whether a Redis is fit to keep things: its version, whether it may evict them, whether it writes them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.exceptions

from callboard.loggers import get_logger
from callboard.redis.address import Address
from callboard.redis.outage import Refused

log = get_logger(__name__)

_OLDEST = 7


class Health:
    """What one process thinks of its Redis; warns once.

    Args:
        kept: What it is to keep, in a word.
        expiring: Whether some of that has a time to live: then it mustn't evict such keys either.
    """

    #: Asked on each new connection. A user may not be allowed the second, which then tells nothing.
    questions: Sequence[Sequence[str]] = (
        ["INFO", "server", "memory", "persistence"],
        ["CONFIG", "GET", "save"],
    )

    def __init__(self, kept: str, *, expiring: bool = False) -> None:
        self._kept = kept
        self._evicting = ("allkeys", "volatile") if expiring else ("allkeys",)
        self._warned = False

    def examine(self, answers: Sequence[Any], address: Address) -> None:
        """Look at the answers.

        Raises:
            Refused: It mustn't be used; the message says why and what to do.
        """
        info, saves = answers
        if isinstance(info, redis.exceptions.RedisError):
            return
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        version = facts.get("redis_version", "0")
        if int(version.partition(".")[0]) < _OLDEST:
            raise Refused(
                f"Redis at {address} is version {version}; Callboard needs {_OLDEST} or newer, or Valkey"
            )
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy.startswith(self._evicting) and facts.get("maxmemory", "0") != "0":
            raise Refused(
                f"Redis at {address} may evict {self._kept} when its memory is full (maxmemory-policy {policy}): "
                f"set maxmemory-policy to noeviction, or use another Redis for {self._kept}"
            )
        if facts.get("loading") == "1":  # which some servers call "not writing to the disk" meanwhile
            return
        if not self._warned and facts.get("aof_enabled") == "0" and saves == [b"save", b""]:
            self._warned = True
            log.warning(
                "redis_keeps_nothing",
                redis=str(address),
                advice=f"it writes nothing to disk, so a restart loses {self._kept}: set 'appendonly yes'",
            )
