"""Declares what a scheduled actor may say."""

from __future__ import annotations

from dramatiq import Middleware


class Periodic(Middleware):
    """Knows `periodic=cron(...)`. periodiq's own middleware is not installed: it acks late ticks away."""

    @property
    def actor_options(self) -> set[str]:
        return {"periodic", "scheduled_at"}
