"""What a test has opened is closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, ParamSpec, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> Any: ...


P = ParamSpec("P")
C = TypeVar("C", bound=_Closable)


@contextmanager
def closing_all(open_one: Callable[P, C]) -> Iterator[Callable[P, C]]:
    """Opens one after the other, and closes them all at the end of the block."""
    with ExitStack() as opened:
        yield lambda *args, **kwargs: opened.enter_context(closing(open_one(*args, **kwargs)))
