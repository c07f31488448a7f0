"""What happens to the processes of a worker, as its supervisor tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from callboard.loggers import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a process, as `on_event` is told it; see also `log`.

    Attributes:
        kind: `started`, `died` (by itself), `replaced` (one that died is, by this one), `stopped` (as it was
            told to), `reloaded` (the application, not a process).
        pid: Of the process.
        at: Seconds since the epoch.
        companion: Its name, if the process is no worker.
        exit: How it ended, in words.
        running: The ids of the jobs that it ran when it died.
        seconds: How long it lived; for `replaced`, how long the other's place was empty.
        replaces: The pid of the one that died.
    """

    kind: Literal["started", "died", "replaced", "stopped", "reloaded"]
    pid: int
    at: float
    companion: str | None = None
    exit: str = ""
    running: tuple[str, ...] = ()
    seconds: float = 0.0
    replaces: int | None = None

    def log(self) -> None:
        """Tell people of it."""
        fields: dict[str, Any] = {"pid": self.pid}
        if self.companion:
            fields["companion"] = self.companion
        if self.kind == "died":
            fields |= {"exit": self.exit, "running": list(self.running), "lived": round(self.seconds, 1)}
            log.error("worker process died, it is replaced", **fields)
        elif self.kind == "replaced":
            log.info(
                "worker process replaced", replaces=self.replaces, seconds=round(self.seconds, 2), **fields
            )
        elif self.kind == "stopped":
            log.info("worker process stopped", exit=self.exit, **fields)
        elif self.kind == "started":
            log.info("worker process started", **fields)
        else:
            log.info("application loaded anew")
