"""Deaths for a worker to die in a test: at a named point of a run, or at a call that the job makes.

What a real kill leaves behind is left here too: what was sent and written before, a claim that comes back, no
hook that ran after. What can't be had within one process: the job's own `finally` blocks run, where a killed
process runs nothing. They can send no job any more.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, Literal, get_args

import dramatiq

Point = Literal["before_start", "after_send", "after_run", "before_ack"]


class Crash(BaseException):
    """The worker dies here. Not an `Exception`: whoever catches those doesn't catch this."""

    ends_the_worker = True  # hooks let it pass


class CrashPoint:
    """Where a worker is to die.

    Args:
        point: The name of a point in a run; None where `struck_by` puts it around a function.
        nth: At which time it is passed.
        actor_name: Only runs of this actor count.
        job_id: Only runs of this job count.

    Attributes:
        job_id: The job that ran when the worker died; None before.
        passed: How often the point was passed.
    """

    def __init__(
        self,
        point: Point | None,
        *,
        nth: int = 1,
        actor_name: str | None = None,
        job_id: str | None = None,
    ) -> None:
        if point is not None and point not in get_args(Point):
            raise ValueError(
                f"there is no point {point!r}; name one of {', '.join(get_args(Point))}, or pass a function"
            )
        if nth < 1:
            raise ValueError(f"nth counts from 1, and is {nth}")
        self.point = point
        self.passed = 0
        self.job_id: str | None = None
        self._nth = nth
        self._actor_name = actor_name
        self._only_job = job_id

    @property
    def struck(self) -> bool:
        """Whether the worker has died."""
        return self.job_id is not None

    def passed_by(self, job_id: str, actor_name: str) -> bool:
        """A run passes the point. Whether the worker is to die now."""
        if self.struck or self._actor_name not in (None, actor_name) or self._only_job not in (None, job_id):
            return False
        self.passed += 1
        if self.passed == self._nth:
            self.job_id = job_id
        return self.struck


@contextmanager
def around_calls(
    fn: Callable[..., Any], *, before: Callable[[], None], after: Callable[[], None]
) -> Iterator[None]:
    """Call something before and after each call of a function, until the block ends.

    The function is replaced wherever a module or its class names it, so a job's call is seen if it looks the
    function up when it calls it.

    Raises:
        ValueError: If it is found nowhere.
    """
    with ExitStack() as undo:
        _replace(fn, functools.partial(_wrapped, before=before, after=after), undo)
        yield


def _wrapped(
    fn: Callable[..., Any], *, before: Callable[[], None], after: Callable[[], None]
) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            before()
            result = await fn(*args, **kwargs)
            after()
            return result

        return call_async

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        before()
        result = fn(*args, **kwargs)
        after()
        return result

    return call


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _replace(fn: Callable[..., Any], wrap: Wrap, undo: ExitStack) -> None:
    if isinstance(fn, dramatiq.Actor):
        raise TypeError(f"{fn} is an actor: name a point, and pass actor=")
    owner = getattr(fn, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType) and hasattr(fn, "__func__"):
        _replace_method(fn, owner, wrap, undo)
        return
    replacement = wrap(fn)
    places = [*_in_modules(fn), *_in_class(fn)]
    if not places:
        raise ValueError(f"{fn!r} is named by no module and no class, so a job's call of it can't be seen")
    for holder, name, kind in places:
        _set(holder, name, kind(replacement), undo)


def _replace_method(method: Any, owner: Any, wrap: Wrap, undo: ExitStack) -> None:
    name = method.__name__
    if isinstance(owner, type):
        _set(owner, name, classmethod(wrap(method.__func__)), undo)
        return
    try:
        _set(owner, name, wrap(method), undo)
    except (AttributeError, TypeError):  # slots, or frozen: then for all instances of the class
        _set(type(owner), name, wrap(method.__func__), undo)


def _in_modules(fn: Callable[..., Any]) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is fn:
                    yield module, name, _as_it_is


def _in_class(fn: Callable[..., Any]) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Where a function that was taken from its class stands: `crash_at(Mailer.send)`."""
    path = getattr(fn, "__qualname__", "").split(".")
    holder: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
    for part in path[:-1]:
        holder = getattr(holder, part, None)
    if isinstance(holder, type):
        own = vars(holder).get(path[-1])
        if isinstance(own, staticmethod) and own.__func__ is fn:
            yield holder, path[-1], staticmethod
        elif own is fn:
            yield holder, path[-1], _as_it_is


def _as_it_is(fn: Any) -> Any:
    return fn


_ABSENT = object()


def _set(holder: Any, name: str, value: Any, undo: ExitStack) -> None:
    own = vars(holder).get(name, _ABSENT) if hasattr(holder, "__dict__") else _ABSENT
    setattr(holder, name, value)
    if own is _ABSENT:
        undo.callback(delattr, holder, name)
    else:
        undo.callback(setattr, holder, name, own)
