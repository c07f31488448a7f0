"""What happens to open files, connections and threads' locks when a process forks.

A forked child has its parent's open files, but none of its threads, and must use neither its connections
nor its locks. Whatever has to be put right registers here, once, when it is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import ExitStack
from typing import Protocol


class Follower(Protocol):
    """Something that is put right in a child."""

    def forked(self) -> None:
        """We are in the child, and only the thread that forked is left. Says nothing to any server."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()
_at_rest: weakref.WeakKeyDictionary[Follower, threading.Lock] = weakref.WeakKeyDictionary()
_one_fork = threading.Lock()
_held = ExitStack()


def follow(follower: Follower, *, at_rest: threading.Lock | None = None) -> None:
    """Call `follower.forked()` in every child. A fork waits for the lock `at_rest`, so that what it guards
    isn't in use at that moment; it is free again when `forked` is called."""
    _followers.add(follower)
    if at_rest is not None:
        _at_rest[follower] = at_rest


def _before() -> None:
    _one_fork.acquire()
    for lock in list(_at_rest.values()):
        _held.enter_context(lock)


def _in_parent() -> None:
    _held.close()
    _one_fork.release()


def _in_child() -> None:
    _held.close()
    _one_fork.release()
    for follower in list(_followers):
        follower.forked()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
