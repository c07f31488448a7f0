"""The keys of unique jobs: held from the send until the job ends."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from dramatiq import Message

from callboard.envelope import Extras
from callboard.errors import NotQueued, StoreUnavailable
from callboard.loggers import get_logger
from callboard.states import State
from callboard.store.base import Store

log = get_logger(__name__)

#: A key ends by itself so long after its job may start: a crash in the wrong moment mustn't hold it for ever.
TTL = timedelta(days=1)
_SENDING = 10.0  # seconds beyond the send's deadline; a producer that dies in between holds the key no longer


def hold(store: Store | None, message: Message[Any], extras: Extras, *, deadline: float) -> str:
    """Take a job's key, if it has one, for as long as the send may last.

    The key of a job that has ended, or was cancelled and doesn't run, is taken over.

    Args:
        deadline: Seconds that the send may take.

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
    key = _key(extras.unique)
    try:
        owner = store.claim_key(key, job_id, ttl=deadline + _SENDING)
        if owner != job_id and _is_over(store, owner):
            store.release_key(key, owner)
            owner = store.claim_key(key, job_id, ttl=deadline + _SENDING)
    except StoreUnavailable as error:
        raise NotQueued(
            f"not queued: whether the unique job is queued already can't be told: {error}", job_id=job_id
        ) from error
    return owner


def _is_over(store: Store, job_id: str) -> bool:
    """Whether a job needs its key no more. One without a record may be on its way: it keeps the key."""
    record = store.get(job_id)
    if record is None:
        return False
    if record.state.is_end:
        return True
    return record.state is not State.RUNNING and store.is_cancelled(job_id)


def keep(store: Store | None, held: Iterable[tuple[str, str]], *, wait: float) -> None:
    """The jobs are queued: let them have their keys until they end.

    Args:
        wait: Seconds until they may start.
    """
    for key, job_id in held if store is not None else ():
        assert store is not None
        try:
            store.claim_key(_key(key), job_id, ttl=max(0.0, wait) + TTL.total_seconds())
        except StoreUnavailable as error:
            log.warning("unique key ends early", key=key, job_id=job_id, error=str(error))


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
