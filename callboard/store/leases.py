"""A job's lease: the key by which a store says which worker a job that runs belongs to.

Who writes them and why: see `callboard.worker.leases`.
"""

from __future__ import annotations

from callboard.store.base import Store

#: Seconds that a lease lasts after it was last renewed, by the store's clock.
LEASE = 10.0


def take_lease(store: Store, job_id: str, owner: str) -> bool:
    """Take a job's lease, or renew it. False if somebody else has it.

    Args:
        owner: Who takes it, as 'host:pid' and whatever tells it from others.

    Raises:
        StoreUnavailable
    """
    return store.claim_key(_key(job_id), owner, ttl=LEASE, durable=False) == owner


def free_lease(store: Store, job_id: str, owner: str) -> None:
    """Free a job's lease, if the owner has it.

    Raises:
        StoreUnavailable
    """
    store.release_key(_key(job_id), owner)


def lease_owner(store: Store, job_id: str) -> str | None:
    """Who has a job's lease.

    Raises:
        StoreUnavailable
    """
    return store.key_owner(_key(job_id))


def _key(job_id: str) -> str:
    return f"lease:{job_id}"
