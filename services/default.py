"""The ready-made instance behind a service's functions: built at the first call, replaceable in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Default(Generic[T]):
    """One instance for the process, built from settings when it is first asked for.

    `needs` names the defaults that `build` calls: whoever replaces one of those gets this one built anew,
    with the replacement inside.
    """

    def __init__(self, build: Callable[[], T], *, needs: Iterable[Default[Any]] = ()) -> None:
        self._build = build
        self._instance: dict[str, T] = {}
        self._dependents: list[Default[Any]] = []
        for needed in needs:
            needed._dependents.append(self)

    def __call__(self) -> T:
        """The instance.

        Raises:
            SettingsError: a setting that it is built from is wrong.
            MissingExtra: it needs a library that isn't installed.
        """
        # No lock, which a fork could copy while it is held: of two threads that both build, one wins.
        if "it" not in self._instance:
            return self._instance.setdefault("it", self._build())
        return self._instance["it"]

    @contextmanager
    def replaced_by(self, instance: T) -> Iterator[T]:
        """Inside the block, everyone who asks gets `instance`."""
        before = self._instance
        self._instance = {"it": instance}
        self._forget_dependents()
        try:
            yield instance
        finally:
            self._instance = before
            self._forget_dependents()

    def forget(self) -> None:
        """Build anew when next asked: after a change of settings."""
        self._instance = {}
        self._forget_dependents()

    def _forget_dependents(self) -> None:
        for dependent in self._dependents:
            dependent.forget()
