"""The names of queues: `<category>.<priority>`, `<category>.dead`, and the quarantine.

A queue of a stock Dramatiq actor has no priority in its name (`default`): it counts as medium, and the
whole name is its category.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache

QUARANTINE = "callboard.quarantine"

_CATEGORY = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class Priority(IntEnum):
    """How urgent a job is. Lower runs first."""

    CRITICAL = 1  # security alerts, payments
    HIGH = 2  # a user waits for it
    MEDIUM = 3  # background work
    LOW = 4  # cleaning up

    @property
    def word(self) -> str:
        """As it stands in a queue's name."""
        return self.name.lower()


_BY_WORD = {priority.word: priority for priority in Priority}


def is_category(name: str) -> bool:
    """Whether a name can be a category: lower case letters, digits, `_` and `-`, a letter first."""
    return _CATEGORY.fullmatch(name) is not None and name != "callboard"


def queue_for(category: str, priority: Priority) -> str:
    """The queue in which jobs of a category and a priority wait."""
    return f"{category}.{priority.word}"


@lru_cache(maxsize=4096)
def split(queue: str) -> tuple[str, Priority]:
    """The category and the priority of a queue."""
    category, dot, word = queue.rpartition(".")
    if dot and (priority := _BY_WORD.get(word)):
        return category, priority
    return queue, Priority.MEDIUM


def category_of(queue: str) -> str:
    """The category of a queue of jobs."""
    return split(queue)[0]


def priority_of(queue: str) -> Priority:
    """The priority of the jobs in a queue."""
    return split(queue)[1]


def dead_queue(category: str) -> str:
    """Where the dead letters of a category lie."""
    return f"{category}.dead"
