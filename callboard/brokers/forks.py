"""What a forked child must put right: connections, and the threads that used them, are its parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Follower(Protocol):
    """Something that is put right in a child."""

    def forked(self) -> None:
        """We are in the child, and only the thread that forked is left. Says nothing to any server."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()
_hooked: list[bool] = []


def follow(follower: Follower) -> None:
    """Call `follower.forked()` in every child, as long as it lives."""
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=_in_child)
    _followers.add(follower)


def _in_child() -> None:
    for follower in list(_followers):
        follower.forked()
