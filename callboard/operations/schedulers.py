"""Whether a scheduler lives: one says so in the store, for as long as it does."""

from __future__ import annotations

from callboard.store.base import Store

_KEY = "scheduler:alive"
_SECONDS = 60.0


def say_alive(store: Store, scheduler: str) -> None:
    """A scheduler lives. To be said every 20 seconds; of several, one is enough.

    Raises:
        StoreUnavailable
    """
    store.claim_key(_KEY, scheduler, ttl=_SECONDS, durable=False)


def say_stopped(store: Store, scheduler: str) -> None:
    """A scheduler stops. Another that lives says so within seconds.

    Raises:
        StoreUnavailable
    """
    store.release_key(_KEY, scheduler)


def a_scheduler_lives(store: Store) -> bool:
    """Whether any said so within the last minute.

    Raises:
        StoreUnavailable
    """
    return store.key_owner(_KEY) is not None
