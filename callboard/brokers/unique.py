"""The keys of unique jobs: held from the send until the job ends, or starts, or for a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
_RECORDED_WITHIN = 600.0  # seconds from a replay's decision to its record
_SENDING = 10.0  # seconds beyond the send's deadline; a producer that dies in between holds the key no longer


def hold(store: Store | None, message: Message[Any], extras: Extras, *, deadline: float) -> str:
    """Take a job's key, if it has one, for as long as the send may last.

    The key of a job that has ended, or was cancelled and doesn't run, is taken over, but one that lasts for a time.

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
    key = name_of(extras)
    try:
        owner = store.claim_key(key, job_id, ttl=deadline + _SENDING)
        if owner != job_id and extras.unique_for is None and _is_over(store, owner):
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
        return record.state is not State.DEAD or store.key_owner(_replay_of(job_id)) is None
    return record.state is not State.RUNNING and store.is_cancelled(job_id)


def announce_replay(store: Store, job_id: str) -> None:
    """A dead job is about to be queued again, and its record will say so a little later: its key isn't free.

    Raises:
        StoreUnavailable
    """
    store.claim_key(_replay_of(job_id), job_id, ttl=_RECORDED_WITHIN)


def keep(
    store: Store | None, held: Iterable[tuple[str, str]], *, wait: float, lasting: Mapping[str, float]
) -> None:
    """The jobs are queued: let them have their keys until they end.

    Args:
        held: Keys, by `name_of`, and ids.
        wait: Seconds until they may start.
        lasting: Seconds for which a job has its key instead, by its id.
    """
    for key, job_id in held if store is not None else ():
        assert store is not None
        try:
            ttl = lasting.get(job_id, max(0.0, wait) + TTL.total_seconds())
            store.claim_key(key, job_id, ttl=ttl)
        except StoreUnavailable as error:
            log.warning("unique key ends early", key=key, job_id=job_id, error=str(error))


def release(store: Store | None, held: Iterable[tuple[str, str]]) -> None:
    """Free keys, given as (key by `name_of`, id of the job that holds it)."""
    for key, job_id in held if store is not None else ():
        assert store is not None
        try:
            store.release_key(key, job_id)
        except StoreUnavailable as error:
            log.warning("unique key not released, it ends by itself", key=key, error=str(error))


def name_of(extras: Extras) -> str:
    """What a unique job's key is called in the store. One that lasts for a time is another than one that doesn't."""
    return f"unique{'-for' if extras.unique_for is not None else ''}:{extras.unique}"


def _replay_of(job_id: str) -> str:
    return f"replay:{job_id}"
