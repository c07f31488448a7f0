"""The rules of sending: `enqueue` and all that comes to it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import msgspec
from dramatiq import Message

from callboard import envelope
from callboard.actor import JobActor
from callboard.brokers import event_loop, unique
from callboard.brokers.driver import Outgoing, PutError
from callboard.brokers.hooks import Hooks
from callboard.envelope import Extras, Headers
from callboard.errors import (
    MAX_WAIT,
    FateUnknown,
    InvalidPayload,
    NotQueued,
    PartlySent,
    PayloadTooLarge,
    SendError,
    Unreadable,
)
from callboard.loggers import get_logger
from callboard.payload import PayloadMismatch, is_finite
from callboard.states import State
from callboard.versions import CannotUpcast

R = TypeVar("R")
T = TypeVar("T")

#: How many jobs are checked and encoded on an event loop; more hold it up for too long.
_FEW = 100

log = get_logger(__name__)


class Sending(Hooks):
    """Checks, signs and queues jobs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        super().__init__(*args, **kwargs)

    def enqueue(self, message: Message[R], *, delay: int | timedelta | None = None) -> Message[R]:
        """Queue a job; it is safe when this returns.

        Args:
            message: The job.
            delay: Milliseconds or a timedelta until it may start.

        Returns:
            The message as it was queued. If the job is unique and another one has its key, the message
            carries the id of that one, also as `options["callboard"]["duplicate_of"]`, and
            nothing was queued.

        Raises:
            InvalidPayload: The arguments don't fit, are no JSON, or make a message over the size limit.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
        """
        event_loop.warn_if_running()
        if delay is None and not self._hooks_of("before_enqueue"):
            checked, extras, given = self._check(message)
            if extras.unique is None:
                self._enqueue_plain(checked, given)
                return checked
        return self._enqueue_call(_call(delay, self.clock()), [message])[0]

    def _enqueue_plain(self, checked: Message[Any], given: Any) -> None:
        """Queue a job as most are: one that waits for nothing, holds no key, and that no hook changes. What comes
        after a wait for the disk or the network is slow, for the processor has slept; so this is short."""
        if checked.queue_name not in self.queues:
            self.declare_queue(checked.queue_name)
        outgoing = self._outgoing(checked, given, None)
        try:
            self.driver.put([outgoing], deadline=self._send_deadline)
        except PutError as error:
            self._failed(_Call(None, None, 0.0, [checked], [checked], [outgoing], [], {}), error)
        for hook in self._hooks_of("after_enqueue"):
            try:
                hook(self, checked, None)
            except BaseException as error:  # noqa: BLE001  told by _hook_failed
                self._hook_failed(hook, error)

    def enqueue_many(
        self, messages: Iterable[Message[R]], *, delay: int | timedelta | None = None
    ) -> list[Message[R]]:
        """Queue jobs, in one go; all are safe when this returns. All are checked before any is queued.

        Raises:
            InvalidPayload: One job is wrong, and none was queued.
            PartlySent: Some were queued; the error says which are, aren't, or may be.
            NotQueued: None was queued.
            FateUnknown: As for `enqueue`, when there is one job only.
        """
        event_loop.warn_if_running()
        return self._enqueue_call(_call(delay, self.clock()), messages)

    def _enqueue_call(self, call: _Call[R], messages: Iterable[Message[R]]) -> list[Message[R]]:
        try:
            self._add(call, messages)
            if call.outgoing:
                self.driver.put(call.outgoing, deadline=self._send_deadline)
        except BaseException as error:
            self._failed(call, error)
            raise
        self._sent(call)
        return call.prepared

    async def enqueue_async(self, message: Message[R], *, delay: int | timedelta | None = None) -> Message[R]:
        """`enqueue` without blocking the event loop."""
        return (await self.enqueue_many_async([message], delay=delay))[0]

    async def enqueue_many_async(
        self, messages: Iterable[Message[R]], *, delay: int | timedelta | None = None
    ) -> list[Message[R]]:
        """`enqueue_many` without blocking the event loop.

        Where the driver can, it waits without a thread. When the waiting task is cancelled, the sending goes on
        behind it until its deadline: the jobs may be queued or not.
        """
        if not self.driver.puts_async:
            return await asyncio.to_thread(self.enqueue_many, messages, delay=delay)
        task = asyncio.create_task(self._enqueue_on_loop(messages, delay))
        self._tasks.add(task)  # the loop itself holds no task
        task.add_done_callback(self._forget_task)
        return await asyncio.shield(task)

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # where nobody awaits it any more, asyncio would complain that nobody has looked

    async def _enqueue_on_loop(
        self, messages: Iterable[Message[R]], delay: int | timedelta | None
    ) -> list[Message[R]]:
        messages = iter(messages)
        first = list(islice(messages, _FEW + 1))
        # What takes long, or asks the store, is done in a thread; nobody waits for RabbitMQ there.
        run = _here if len(first) <= _FEW and not any(map(_is_unique, first)) else asyncio.to_thread
        call: _Call[R] = _call(delay, self.clock())
        try:
            await run(self._add, call, chain(first, messages))
            if call.outgoing:
                await self.driver.put_async(call.outgoing, deadline=self._send_deadline)
        except asyncio.CancelledError:  # the loop ends; the keys end by themselves
            raise
        except BaseException as error:
            await run(self._failed, call, error)
            raise
        await run(self._sent, call)
        return call.prepared

    def _add(self, call: _Call[R], messages: Iterable[Message[R]]) -> None:
        """Check and encode what is to be sent, and take the keys of unique jobs."""
        has_hooks = bool(self._hooks_of("before_enqueue"))
        for message in messages:
            checked, extras, given = self._check(message)
            if extras.unique is not None:
                owner = unique.hold(self.store, checked, extras, deadline=self._send_deadline)
                if owner != checked.message_id:
                    call.prepared.append(_duplicate(checked, owner))
                    continue
                call.held.append((unique.name_of(extras), owner))
                if extras.unique_for is not None:
                    call.lasting[owner] = extras.unique_for
            if checked.queue_name not in self.queues:
                self.declare_queue(checked.queue_name)
            if has_hooks:
                self.emit_before("enqueue", checked, call.delay_ms)
            call.outgoing.append(self._outgoing(checked, given, call.due))
            call.prepared.append(checked)
            call.messages.append(checked)

    def _sent(self, call: _Call[R]) -> None:
        if call.held:
            unique.keep(self.store, call.held, wait=call.wait, lasting=call.lasting)
        self._emit_enqueued(call.messages, call.delay_ms)

    def _failed(self, call: _Call[R], error: BaseException) -> None:
        """Let go of keys.

        Raises:
            SendError: If the driver couldn't put all.
        """
        if not isinstance(error, PutError):
            unique.release(self.store, call.held)
            return
        maybe = {o.job_id for o in call.outgoing} - {o.job_id for o in error.not_queued}
        unique.release(self.store, [key for key in call.held if key[1] not in maybe])
        held = [key for key in call.held if key[1] in maybe]
        unique.keep(self.store, held, wait=call.wait, lasting=call.lasting)
        queued = maybe - {o.job_id for o in error.unknown}
        self._emit_enqueued([m for m in call.messages if m.message_id in queued], call.delay_ms)
        raise _send_error(error, call.outgoing) from error

    def _emit_enqueued(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> None:
        """Run the hooks after an enqueue. Many jobs are told together to a middleware that has the method
        `after_enqueue_many(broker, messages, delay)`."""
        for hook in self._hooks_of("after_enqueue"):
            owner = getattr(hook, "__self__", None)
            together = getattr(owner, "after_enqueue_many", None) if len(messages) > 1 else None
            if together is not None:
                self._call_hook(together, messages, delay_ms)
                continue
            for message in messages:
                self._call_hook(hook, message, delay_ms)

    def prepare(self, message: Message[Any]) -> Outgoing:
        """A message as `enqueue` would queue it now: checked and signed. For a job that is sent once more with
        a mended payload; nothing is held or emitted.

        Raises:
            InvalidPayload: The arguments don't fit.
        """
        checked, _, given = self._check(message)
        return self._outgoing(checked, given, None)

    def _check(self, message: Message[R]) -> tuple[Message[R], Extras, Any]:
        """The message with checked arguments, what its options say, and the arguments before they became JSON."""
        job_id = message.message_id
        if not envelope.is_job_id(job_id):
            raise InvalidPayload(
                f"{job_id[:140]!r} can't be a job's id: it may have 1 to 128 of letters, digits, '.', '_', ':' and '-'",
                job_id=job_id,
            )
        options = message.options
        try:
            extras = envelope.extras_of(options)
            if len(options) > ("callboard" in options):
                envelope.check_options(options, self._known_options)
        except Unreadable as error:
            raise InvalidPayload(f"'{message.actor_name}' can't be sent: {error}", job_id=job_id) from error
        actor = self.actors.get(message.actor_name)
        version = actor.payload_version if isinstance(actor, JobActor) else 1
        if "callboard" not in options:
            options = {**options, "callboard": {"v": envelope.VERSION}}
            if version != 1:
                options["callboard"]["payload_version"] = version
        if isinstance(actor, JobActor):
            try:
                if extras.payload_version < version and options is message.options:
                    message = _brought_up_to_date(message, actor, extras.payload_version)
                    options = message.options
                checked = actor.payload.check(actor.payload.bind(message.args, message.kwargs))
                kwargs = actor.payload.dump(checked)
            except (CannotUpcast, PayloadMismatch) as error:
                raise InvalidPayload(
                    f"'{message.actor_name}' was not sent: {error}", job_id=job_id
                ) from error
            return _rebuilt(message, (), kwargs, options), extras, checked
        if options is not message.options:
            message = _rebuilt(message, message.args, message.kwargs, options)
        return message, extras, message.args

    def _outgoing(self, message: Message[Any], given: Any, due: float | None) -> Outgoing:
        try:
            body = envelope.encode(message)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise InvalidPayload(
                f"'{message.actor_name}' was not sent: its arguments are no JSON: {error}",
                job_id=message.message_id,
            ) from error
        # What isn't finite is a null in JSON, and most messages have none.
        if b"null" in body and not (is_finite(given) and is_finite(message.kwargs)):
            raise InvalidPayload(
                f"'{message.actor_name}' was not sent: JSON has no NaN and no infinity",
                job_id=message.message_id,
            )
        if len(body) > self.max_message_bytes:
            raise PayloadTooLarge(
                job_id=message.message_id,
                actor=message.actor_name,
                size=len(body),
                limit=self.max_message_bytes,
            )
        headers = b""
        if due is not None or self._signer is not None:
            headers = envelope.encode_headers(
                Headers(
                    state=State.SCHEDULED if due is not None else "",
                    ready_at=due,
                    signature=self._signer.sign(message.queue_name, body) if self._signer is not None else "",
                )
            )
        return Outgoing(message.queue_name, body, message.message_id, headers, due)


@dataclasses.dataclass(slots=True)
class _Call(Generic[R]):
    """One call of `enqueue_many`: what it sends, and what it has got so far."""

    due: float | None
    delay_ms: int | None
    wait: float  # seconds until the jobs may start
    prepared: list[Message[R]]  # what the caller gets, in its order
    messages: list[Message[R]]  # those among them that are to be queued
    outgoing: list[Outgoing]  # the same, for the driver
    held: list[tuple[str, str]]  # (unique key, id of the job that holds it)
    lasting: dict[str, float]  # id of a job -> seconds for which it has its key


def _call(delay: int | timedelta | None, now: float) -> _Call[Any]:
    due, delay_ms = _due(delay, now)
    return _Call(due, delay_ms, (due or now) - now, [], [], [], [], {})


async def _here(work: Callable[..., T], *args: Any) -> T:
    """Instead of `asyncio.to_thread`."""
    return work(*args)


def _is_unique(message: Message[Any]) -> bool:
    extras = message.options.get("callboard")
    return isinstance(extras, Mapping) and extras.get("unique") is not None


def _due(delay: int | timedelta | None, now: float) -> tuple[float | None, int | None]:
    """When a delayed job is due, and its delay in milliseconds."""
    if delay is None:
        return None, None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay / 1000
    if not seconds <= MAX_WAIT.total_seconds():  # nor is it when it is no number
        raise ValueError(f"a job can wait {MAX_WAIT.days} days at most, not {seconds:g} seconds")
    if seconds <= 0:
        return None, None
    return now + seconds, round(seconds * 1000)


def _rebuilt(
    message: Message[R], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
) -> Message[R]:
    return envelope.new_message(
        message.queue_name,
        message.actor_name,
        args,
        kwargs,
        options,
        message.message_id,
        message.message_timestamp,
    )


def _brought_up_to_date(message: Message[R], actor: JobActor[..., Any], version: int) -> Message[R]:
    """A message with a payload of an earlier version, as one of today's: somebody made it before a deploy, for it
    to be sent when another job has ended, or it was in a dead letter."""
    fields = actor.upcast(message.args, message.kwargs, version=version)
    own = {**message.options["callboard"], "payload_version": actor.payload_version}
    return _rebuilt(message, (), fields, {**message.options, "callboard": own})


def _duplicate(message: Message[R], owner: str) -> Message[R]:
    """What the sender of a unique job gets when another job has its key."""
    told = {**message.options["callboard"], "duplicate_of": owner}
    return dataclasses.replace(message, message_id=owner, options={**message.options, "callboard": told})


def _send_error(error: PutError, outgoing: Sequence[Outgoing]) -> SendError:
    not_queued = [o.job_id for o in error.not_queued]
    unknown = [o.job_id for o in error.unknown]
    first = outgoing[0].job_id
    if len(not_queued) == len(outgoing):
        return NotQueued(f"not queued: {error}", job_id=first)
    if len(outgoing) == 1:
        return FateUnknown(f"fate unknown of job {first}: {error}", job_id=first)
    bad = {*not_queued, *unknown}
    queued = [o.job_id for o in outgoing if o.job_id not in bad]
    return PartlySent(str(error), queued=queued, not_queued=not_queued, unknown=unknown)
