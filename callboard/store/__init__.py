"""What is known about jobs: records, control, keys, counters, heartbeats, audit, results.

`base.py` says what a store does; `sqlite/` is one for the processes of one host, `redis/` one for any number of
hosts. `recorder.py` writes records behind the
backs of running jobs, `merge.py` says what several changes come to, `control.py` is a worker's copy of
what is asked of it; `results.py` and `rate_limits.py` are what Dramatiq's own middleware keeps in a store.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from callboard.errors import SettingsError

if TYPE_CHECKING:
    from callboard.store.base import Store

_KNOWN = "known are file:FOLDER (one SQLite file in it), redis://, rediss://, unix:// and memory:"


def open_store(url: str, namespace: str = "", *, folder: Path | None = None) -> Store:
    """The store that a `CALLBOARD_STORE_URL` names. Nothing is opened before it is used.

    Parameters:
        url: `file:FOLDER`; `redis://HOST:PORT/DB`, `rediss://` or `unix://` as the Redis driver has them; or
            `memory:`, which every call gives anew.
        namespace: Apps with different namespaces share a folder or a Redis, and nothing in it.
        folder: What a relative `file:` is relative to; the current folder by default.

    Raises:
        SettingsError: If there is no such store.
    """
    from callboard.store.sqlite import SQLiteStore

    scheme, _, place = url.partition(":")
    if scheme == "memory":
        return SQLiteStore(":memory:")
    if scheme == "file":
        # file:var, file:/srv/var and file:///srv/var
        place = re.sub(r"^//(?=/)", "", place)
        if not place or place.startswith("//"):
            raise SettingsError(f"the store {url!r} names no folder: write file:FOLDER")
        file = (folder or Path.cwd()) / place
        return SQLiteStore(file / (f"store-{namespace}.db" if namespace else "store.db"))
    if scheme in ("redis", "rediss", "unix"):
        from callboard.store.redis import RedisStore

        return RedisStore(url, namespace=namespace)
    raise SettingsError(f"there is no kind of store for {_without_secrets(url)!r}; {_KNOWN}")


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
