"""The hooks of the middleware, called so that they fail closed.

Dramatiq swallows what a hook raises, and acks. Here a hook that fails before or after a run makes the job come
again, uncounted. Hooks around ack and nack only log, and those before an enqueue raise to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from dramatiq import Middleware
from dramatiq.middleware import Callbacks, GroupCallbacks, Interrupt, MiddlewareError, Pipelines, SkipMessage
from dramatiq.results import Results

from callboard.brokers import copies, unique
from callboard.brokers.claim import ClaimedMessage, Drop, Finish, GiveBack, HookFailed, Merge
from callboard.brokers.core import Core
from callboard.errors import StoreUnavailable
from callboard.loggers import get_logger
from callboard.states import State

log = get_logger(__name__)

#: `idle_without` (see `_is_idle_after_plain_run`) of Dramatiq's own middleware.
_IDLE_WITHOUT: dict[type[Any], frozenset[str]] = {
    Callbacks: frozenset({"on_success"}),
    GroupCallbacks: frozenset(),
    Pipelines: frozenset({"pipe_target"}),
    Results: frozenset({"store_results"}),
}


class Hooks(Core):
    """Calls hooks, and notes the failure of one as the message's disposition."""

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_message":
            self.before_run(args[0])
            return
        if signal in ("ack", "nack"):  # whatever they raise, the message is settled
            self._call_hooks("before_" + signal, *args, **kwargs)
            return
        for hook in self._hooks_of("before_" + signal):
            try:
                hook(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                if signal == "enqueue":
                    raise
                log.exception("hook failed", hook=_hook_name(hook))

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Run every hook. A failure after a run becomes the message's disposition; any other is logged."""
        if signal == "process_message":
            self.after_run(args[0], kwargs.get("result"), kwargs.get("exception"))
        elif signal == "skip_message":
            self.after_skip(args[0])
        else:
            self._call_hooks("after_" + signal, *args, **kwargs)

    def before_run(self, message: ClaimedMessage) -> None:
        """Run the hooks before a job's body.

        Raises:
            SkipMessage: If it mustn't run; the message's disposition says why.
        """
        if not message.intake.holds(message.delivery):
            message.disposition = Drop()
            raise SkipMessage("the claim is gone")
        if copies.may_be_copy(message) and self._is_overtaken(message):
            message.disposition = Merge()
            raise SkipMessage("the job has gone further than this message says")
        message.started_at = self.clock()
        self.running[threading.get_ident()] = message
        for hook in self._hooks_of("before_process_message"):
            try:
                hook(self, message)
            except MiddlewareError:
                if message.disposition is None and not message.failed:
                    message.disposition = Finish(State.DISCARDED, reason=f"skipped by {_hook_name(hook)}")
                raise
            except BaseException as error:
                _let_pass(error)
                log.exception(
                    "hook failed, the job doesn't run", hook=_hook_name(hook), job_id=message.message_id
                )
                message.disposition = HookFailed(_hook_name(hook), error)
                raise SkipMessage(f"{_hook_name(hook)} failed") from error
        if message.extras.unique_until is not None:
            unique.release(self.store, [(unique.name_of(message.extras), message.message_id)])

    def _is_overtaken(self, message: ClaimedMessage) -> bool:
        try:
            return copies.is_overtaken(self, message)
        except StoreUnavailable as error:
            log.warning(
                "a job may run again, for the store is away", job_id=message.message_id, error=str(error)
            )
            return False

    def after_run(self, message: ClaimedMessage, result: Any, error: BaseException | None) -> None:
        """Run the hooks after a job's body, whether it succeeded or failed."""
        self.running.pop(threading.get_ident(), None)
        options = message.options
        plain = error is None and result is None and not message.failed
        cancelled = self.control.cancelled if self.control is not None else ()
        if plain and message.message_id not in cancelled and len(options) <= ("callboard" in options):
            hooks = self._hooks_after_plain_run(message.actor_name)
        else:
            hooks = self._hooks_of("after_process_message")
        failed: HookFailed | None = None
        for hook in hooks:
            try:
                hook(self, message, result=result, exception=error)
            except BaseException as raised:
                _let_pass(raised)
                log.exception("hook failed", hook=_hook_name(hook), job_id=message.message_id)
                failed = failed or HookFailed(_hook_name(hook), raised)
        self._note_failure(message, failed)

    def after_skip(self, message: ClaimedMessage) -> None:
        """Run the hooks after a job that `before_run` kept from running."""
        self.running.pop(threading.get_ident(), None)
        hooks = self._hooks_of("after_skip_message")
        if message.disposition is not None and not isinstance(message.disposition, Finish):
            # It comes again: Dramatiq's would tell whoever waits for the result that there is none.
            hooks = [hook for hook in hooks if type(getattr(hook, "__self__", None)) is not Results]
        self._note_failure(message, self._call_each(hooks, message))

    def _note_failure(self, message: ClaimedMessage, failed: HookFailed | None) -> None:
        if failed is not None and not isinstance(message.disposition, Drop | GiveBack | Merge):
            message.disposition = failed

    def _call_hooks(self, method: str, *args: Any, **kwargs: Any) -> HookFailed | None:
        """Run every hook, whatever the others do; returns the first failure."""
        return self._call_each(self._hooks_of(method), *args, **kwargs)

    def _call_each(self, hooks: list[Callable[..., Any]], *args: Any, **kwargs: Any) -> HookFailed | None:
        failed: HookFailed | None = None
        for hook in hooks:
            try:
                hook(self, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001  told by _hook_failed
                failure = self._hook_failed(hook, error)
                failed = failed or failure
        return failed

    def _call_hook(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run one hook, which may fail."""
        try:
            hook(self, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  told by _hook_failed
            self._hook_failed(hook, error)

    def _hook_failed(self, hook: Callable[..., Any], error: BaseException) -> HookFailed:
        _let_pass(error)
        log.exception("hook failed", hook=_hook_name(hook))
        return HookFailed(_hook_name(hook), error)

    def _hooks_of(self, method: str) -> list[Callable[..., Any]]:
        """The hooks that do something: those that a middleware overrides, in their order."""
        hooks = self._hooks.get(method)
        if hooks is None:
            default = getattr(Middleware, method)
            stack = self.middleware if method.startswith("before_") else reversed(self.middleware)
            hooks = [getattr(m, method) for m in stack if getattr(type(m), method, default) is not default]
            self._hooks[method] = hooks
        return hooks

    def _hooks_after_plain_run(self, actor_name: str) -> list[Callable[..., Any]]:
        """The hooks that have something to do after a plain run: one that succeeded, returned None, and whose
        message has no options. Most runs are plain, and to call the other hooks takes longer than many a job.
        """
        key = "plain", actor_name
        hooks = self._hooks.get(key)
        if hooks is None:
            options = self.actors[actor_name].options
            hooks = [
                hook
                for hook in self._hooks_of("after_process_message")
                if not _is_idle_after_plain_run(getattr(hook, "__self__", None), options)
            ]
            self._hooks[key] = hooks
        return hooks


def _is_idle_after_plain_run(middleware: Any, actor_options: Mapping[str, Any]) -> bool:
    """Whether a middleware's `after_process_message` has nothing to do after a plain run of an actor.

    It says so itself: `idle_without` holds the options without which that is so, perhaps none.
    """
    idle_without = _IDLE_WITHOUT.get(type(middleware), getattr(middleware, "idle_without", None))
    if idle_without is None or getattr(middleware, "store_results", False):
        return False
    return not any(actor_options.get(option) for option in idle_without)


def _let_pass(error: BaseException) -> None:
    """A hook may raise anything, and the worker outlives it: SystemExit or CancelledError would end one of its
    threads, silently. Only what isn't the hook's own goes on: an interrupt, or a test's crash."""
    if isinstance(error, Interrupt) or getattr(error, "ends_the_worker", False):
        raise error


def _hook_name(hook: Callable[..., Any]) -> str:
    return f"{type(getattr(hook, '__self__', None)).__name__}.{getattr(hook, '__name__', '?')}"
