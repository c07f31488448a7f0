"""A failure on its way from a runner: told in words, and raised again as if it had happened here.

What is raised is of a class with the same name, below the nearest class of the original that this process has loaded
too. So `retry_on`, `never_retry`, `throws` and `retry_when` see what they would have seen, and no object ever travels.
"""

from __future__ import annotations

import sys
import types
from datetime import timedelta
from functools import lru_cache
from typing import Any, cast

import dramatiq

from callboard import dead_letter
from callboard.errors import Snooze, text_of
from callboard.retry import retry_after
from callboard.worker.isolation.protocol import Failed


def tell(error: BaseException) -> Failed:
    """An exception in words, whatever it is: never raises."""
    try:
        traceback = dead_letter.format_traceback(error)
    except Exception as broken:  # noqa: BLE001  an exception's own code may raise anything
        traceback = f"(its traceback can't be had: {type(broken).__name__})"
    failed = Failed(
        types=[_name_of(cls) for cls in type(error).__mro__ if cls is not object],
        text=text_of(error),
        traceback=traceback,
        where=dead_letter.where_raised(error),
    )
    try:
        asked = retry_after(error)
        failed.retry_after = None if asked is None else asked.total_seconds()
        failed.wait = error.wait.total_seconds() if isinstance(error, Snooze) else None
        failed.delay = error.delay if isinstance(error, dramatiq.Retry) else None
    except Exception:  # noqa: BLE001  as above
        return failed
    return failed


def remake(failed: Failed) -> BaseException:
    """The exception to raise here."""
    error: Any = _class_for(tuple(failed.types))
    made: Any = error.__new__(error)
    made.told_text = failed.text
    made.told_traceback = failed.traceback
    made.told_where = failed.where
    if failed.retry_after is not None:
        made.retry_after = failed.retry_after
    if failed.wait is not None:
        made.wait = timedelta(seconds=failed.wait)
    if isinstance(made, dramatiq.Retry):
        made.delay = None if failed.delay is None else int(failed.delay)
    assert isinstance(made, BaseException)
    return made


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


@lru_cache(maxsize=256)
def _class_for(names: tuple[str, ...]) -> type[BaseException]:
    module, _, qualname = names[0].partition(":")

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            __module__=module,
            __qualname__=qualname,
            __str__=lambda self: self.told_text,
            __repr__=lambda self: f"{qualname}({self.told_text!r})",
        )

    for name in names:
        known = _known(name)
        if known is None:
            continue
        try:
            made: Any = types.new_class(qualname.rpartition(".")[2], (known,), exec_body=fill)
            made.__new__(made).told_text = ""  # can one be made without the original's arguments?
        except Exception:  # noqa: BLE001, S112  then one above it
            continue
        return cast("type[BaseException]", made)
    return types.new_class(qualname.rpartition(".")[2], (Exception,), exec_body=fill)


def _known(name: str) -> type[BaseException] | None:
    """A class of exceptions that this process has loaded."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
