"""Results of jobs in a store, for Dramatiq's own `Results` middleware."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq.results import Missing, ResultBackend, ResultMissing, ResultTimeout

if TYPE_CHECKING:
    from dramatiq import Message
    from dramatiq.encoder import Encoder

    from callboard.store.base import Store

_DEFAULT_TIMEOUT_MS = 10_000
_FIRST_WAIT = 0.002
_LAST_WAIT = 0.1


class StoreResultBackend(ResultBackend):
    """Keeps results in a store, for as long as the actor's `result_ttl` says.

    Parameters:
        store: Where to.
        encoder: How results become bytes; Dramatiq's own by default.
    """

    def __init__(self, store: Store, *, encoder: Encoder | None = None) -> None:
        super().__init__(namespace="results", encoder=encoder, use_namespace_prefix_keys=True)
        self.store = store

    def get_result(self, message: Message[Any], *, block: bool = False, timeout: int | None = None) -> Any:
        """A job's result.

        Dramatiq's own waiting doubles its pauses, and gives up as soon as the next would end too late:
        of a timeout of 10 s it uses 6. This one looks at least ten times a second, to the end.

        Parameters:
            block: Whether to wait for it, for up to `timeout` milliseconds (10,000 by default).

        Raises:
            ResultMissing: If it isn't there, and `block` isn't set.
            ResultTimeout: If it wasn't there in time.
            ResultFailure: If the job failed.
            StoreUnavailable: If the store can't be read.
        """
        end = time.monotonic() + (_DEFAULT_TIMEOUT_MS if timeout is None else timeout) / 1000
        key = self.build_message_key(message)
        pause = _FIRST_WAIT
        while (result := self._get(key)) is Missing:
            left = end - time.monotonic()
            if not block:
                raise ResultMissing(message)  # type: ignore[no-untyped-call]  # dramatiq's has no annotations
            if left <= 0:
                raise ResultTimeout(message)  # type: ignore[no-untyped-call]
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_WAIT)
        return self.unwrap_result(result)  # type: ignore[no-untyped-call]

    def _get(self, message_key: str) -> Any:
        data = self.store.get_result(message_key)
        return Missing if data is None else self.encoder.decode(data)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        self.store.put_result(message_key, self.encoder.encode(result), ttl=ttl / 1000)
