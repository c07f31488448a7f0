"""The keys of unique jobs: held from the send until the job ends."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from dramatiq import Message

from callboard.envelope import Extras
from callboard.errors import NotQueued, StoreUnavailable
from callboard.loggers import get_logger
from callboard.store.base import Store

log = get_logger(__name__)

#: A key ends by itself so long after its job may start: a crash in the wrong moment mustn't hold it for ever.
TTL = timedelta(days=1)


def hold(store: Store | None, message: Message[Any], extras: Extras, *, wait: float) -> str:
    """Take a job's key, if it has one.

    Args:
        wait: Seconds until the job may start.

    Returns:
        The id of the job that has the key: this one's, if the key was free or the job isn't unique.

    Raises:
        NotQueued: If that can't be told.
    """
    job_id = message.message_id
    if extras.unique is None:
        return job_id
    if store is None:
        raise NotQueued("a unique job needs a store, and this broker has none", job_id=job_id)
    try:
        return store.claim_key(_key(extras.unique), job_id, ttl=max(0.0, wait) + TTL.total_seconds())
    except StoreUnavailable as error:
        raise NotQueued(
            f"not queued: whether the unique job is queued already can't be told: {error}", job_id=job_id
        ) from error


def release(store: Store | None, held: Iterable[tuple[str, str]]) -> None:
    """Free keys, given as (key, id of the job that holds it)."""
    for key, job_id in held if store is not None else ():
        assert store is not None
        try:
            store.release_key(_key(key), job_id)
        except StoreUnavailable as error:
            log.warning("unique key not released, it ends by itself", key=key, error=str(error))


def _key(key: str) -> str:
    return f"unique:{key}"
