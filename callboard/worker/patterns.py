"""Which queues a worker consumes: patterns over those that the application declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from callboard.errors import AppError, UnknownQueue
from callboard.queues import Priority, priority_of, split


def select_queues(declared: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The declared queues that match at least one pattern (`email.*`, `*.critical`), or all without patterns.

    Args:
        declared: The application's work queues.
        patterns: Shell patterns; one text may hold several, separated by commas.

    Raises:
        UnknownQueue: If a pattern matches none.
        AppError: If no queue is declared at all.
    """
    names = sorted(declared)
    if not names:
        raise AppError(
            "the application declares no actors, so there is nothing to work on; they belong into actors/*.py"
        )
    wanted = [pattern.strip() for text in patterns for pattern in text.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownQueue(f"no queue matches '{pattern}'; there are {', '.join(summed_up(names))}")
    return [name for name in names if not wanted or any(fnmatchcase(name, p) for p in wanted)]


def queues_from(names: Iterable[str], least: Priority) -> list[str]:
    """Of some queues, those whose jobs are at least so urgent."""
    return [name for name in names if priority_of(name) <= least]


def summed_up(names: Iterable[str]) -> list[str]:
    """Queue names in short: all four of a category are `email.*`."""
    categories: dict[str, list[str]] = {}
    for name in names:
        categories.setdefault(split(name)[0], []).append(name)
    parts: list[str] = []
    for category, found in sorted(categories.items()):
        whole = {f"{category}.{priority.word}" for priority in Priority} <= set(found)
        parts += [f"{category}.*"] if whole else sorted(found)
    return parts
