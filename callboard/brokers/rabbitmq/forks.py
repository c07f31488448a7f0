"""What a forked child must forget: connections, and the threads that own them, are its parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    def forget(self) -> None:
        """Called in the child, right after the fork. Says nothing to any server."""


_things: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_hooked: list[bool] = []


def track(thing: Forgetful) -> None:
    """Have something forget when this process forks, as long as it lives."""
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=_forget)
    _things.add(thing)


def _forget() -> None:
    for thing in list(_things):
        thing.forget()
