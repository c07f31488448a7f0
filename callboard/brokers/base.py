"""The broker: the rules that hold on every driver.

The life of a message here:

- `enqueue` checks it (payload, id, size), runs the enqueue hooks, signs it and puts it: when it returns,
  the job is safe. When it raises, it says whether the job may be queued all the same.
- `receive` reads it strictly. What can't be read or trusted goes to quarantine; what this worker doesn't
  know is parked, which is a delay with a reason; a claim that is gone is dropped.
- The worker runs it between the hooks of the middleware. A hook that fails makes the job come again,
  uncounted: never run unguarded, never lost, never in a hot loop.
- `settle` does what the disposition says. Whatever moves a message on is confirmed before the claim is
  let go; while that can't be had, the claim is kept.

Dramatiq's own worker swallows the failures of hooks and then acks. So the safety lies here and in the
consumer, and holds under both workers.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import dramatiq
import msgspec
import structlog
from dramatiq import Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import Callbacks, GroupCallbacks, MiddlewareError, Pipelines, SkipMessage
from dramatiq.results import Results

from callboard import dead_letter, envelope, queues
from callboard.actor import JobActor
from callboard.brokers.claim import DONE, ClaimedMessage, Die, Drop, Finish, GiveBack, HookFailed, Later
from callboard.brokers.consumer import Consumer
from callboard.brokers.driver import Delivery, Driver, Intake, IntakeOptions, Outgoing, PutError
from callboard.brokers.takeover import give_back_unstarted, take_over
from callboard.context import Run, running_job
from callboard.envelope import AttemptError, Extras, Headers, Signer, UnknownExtras
from callboard.errors import (
    FateUnknown,
    InvalidPayload,
    NotQueued,
    PartlySent,
    PayloadTooLarge,
    SendError,
    StoreUnavailable,
    UnknownActor,
    Unreadable,
)
from callboard.payload import PayloadMismatch
from callboard.process import worker_name
from callboard.states import State, order
from callboard.store.base import Change, Store
from callboard.store.control import ControlWatch
from callboard.store.recorder import Recorder

if TYPE_CHECKING:
    from dramatiq import Actor

R = TypeVar("R")

log = structlog.get_logger(__name__)

#: A received message may be larger than the limit of a send, for other producers have other limits.
RECEIVE_LIMIT = 16 * 1024 * 1024
MAX_DELAY = timedelta(days=300)
MAX_HOOK_FAILURES = 20
UNIQUE_TTL = timedelta(days=1)
_PARK_FIRST, _PARK_LAST = 5.0, 60.0
_HOOK_FIRST, _HOOK_LAST = 1.0, 60.0
#: What a hook may raise and the worker outlives. SystemExit would end a thread of Dramatiq's worker, silently.
_HOOK_ERRORS = (Exception, SystemExit)
#: `idle_without` (see `_is_idle_after_plain_run`) of Dramatiq's own middleware.
_IDLE_WITHOUT: dict[type[Any], frozenset[str]] = {
    Callbacks: frozenset({"on_success"}),
    GroupCallbacks: frozenset(),
    Pipelines: frozenset({"pipe_target"}),
    Results: frozenset({"store_results"}),
}
_CHECKPOINT_TTL = timedelta(days=30)


class Broker(dramatiq.Broker):
    """A Dramatiq broker that keeps Callboard's promises, on any driver.

    Args:
        driver: Where messages wait.
        store: What is known about jobs; without one nothing is recorded.
        middleware: What surrounds every job, outermost first.
        send_deadline: Seconds within which a send is confirmed, or raises.
        max_message_bytes: The largest message that a send accepts.
        park_deadline: Seconds that a job waits for a worker that knows it, before it is dead.
        signer: Signs what is sent, and distrusts what isn't signed.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        store: Store | None = None,
        middleware: Sequence[Middleware] = (),
        send_deadline: float = 5.0,
        max_message_bytes: int = 262_144,
        park_deadline: float = 3600.0,
        signer: Signer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attach(driver, store, clock)
        self.max_message_bytes = max_message_bytes
        self._send_deadline = send_deadline
        self._park_deadline = park_deadline
        self._signer = signer
        self.running: dict[int, ClaimedMessage] = {}  # thread -> what it runs
        self._hooks: dict[str | tuple[str, str], list[Callable[..., Any]]] = {}
        self._known_options: frozenset[str] = frozenset()
        super().__init__(middleware=list(middleware))

    def _attach(self, driver: Driver, store: Store | None, clock: Callable[[], float]) -> None:
        self.driver = driver
        self.store = store
        self.recorder = Recorder(store) if store is not None else None
        self.control = ControlWatch(store) if store is not None else None
        self.clock = clock
        self.stopping = threading.Event()
        driver.declare(queues.QUARANTINE)

    @contextmanager
    def replaced(self, driver: Driver, *, store: Store | None, clock: Callable[[], float]) -> Iterator[None]:
        """Work with another driver, store and clock until the block ends. For tests.

        What middleware keeps in the store goes to the other one meanwhile. Queues and actors that were
        declared in the block stay declared, but for actors that were defined inside a function.
        """
        before = {
            **vars(self),
            "middleware": list(self.middleware),
            "actor_options": set(self.actor_options),
            "_hooks": {},
        }
        own_driver, own_store, own_actors = self.driver, self.store, set(self.actors)
        self._attach(driver, store, clock)
        self._declare_queues_on(driver)
        self._hand_middleware(own_store, store)
        try:
            yield
        finally:
            self._hand_middleware(store, own_store)
            vars(self).update(before)
            for name in self.actors.keys() - own_actors:
                if _is_local(self.actors[name].fn):
                    del self.actors[name]
            self._declare_queues_on(own_driver)

    def _declare_queues_on(self, driver: Driver) -> None:
        for queue_name in self.queues:
            driver.declare(queue_name)
            driver.declare(queues.dead_queue(queues.category_of(queue_name)))

    def _hand_middleware(self, old: Store | None, new: Store | None) -> None:
        """Change a store for another where middleware holds it: in itself, or in a backend that it holds."""
        if old is None:
            return
        for middleware in self.middleware:
            for holder in (middleware, *vars(middleware).values()):
                for name, value in list(getattr(holder, "__dict__", {}).items()):
                    if value is old:
                        setattr(holder, name, new)

    # -- declaring ---------------------------------------------------------------------------------------

    def add_middleware(
        self,
        middleware: Middleware,
        *,
        before: type[Middleware] | None = None,
        after: type[Middleware] | None = None,
    ) -> None:
        super().add_middleware(middleware, before=before, after=after)
        self._hooks = {}
        self._known_options = frozenset(self.actor_options) | envelope.KNOWN_OPTIONS

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        self.emit_before("declare_actor", actor)
        if isinstance(actor, JobActor):
            for priority in queues.Priority:
                self.declare_queue(queues.queue_for(actor.category, priority))
        self.declare_queue(actor.queue_name)
        actor.fn = _inside_run(actor.fn)
        self.actors[actor.actor_name] = actor
        self.emit_after("declare_actor", actor)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = None
        self.driver.declare(queue_name)
        self.driver.declare(queues.dead_queue(queues.category_of(queue_name)))
        self.emit_after("declare_queue", queue_name)

    def find_actor(self, name: str) -> Actor[Any, Any]:
        """An actor by its name, written with dashes or underscores.

        Raises:
            UnknownActor: Suggesting the nearest.
        """
        for spelling in (name, name.replace("_", "-"), name.replace("-", "_")):
            if spelling in self.actors:
                return self.actors[spelling]
        raise UnknownActor(name, self.actors)

    # -- sending -----------------------------------------------------------------------------------------

    def enqueue(self, message: Message[R], *, delay: int | timedelta | None = None) -> Message[R]:
        """Queue a job; it is safe when this returns.

        Args:
            message: The job.
            delay: Milliseconds or a timedelta until it may start.

        Returns:
            The message as it was queued. If the job is unique and another one has its key, the message
            carries the id of that one, and nothing was queued.

        Raises:
            InvalidPayload: The arguments don't fit, are no JSON, or make a message over the size limit.
            NotQueued: Nothing was queued.
            FateUnknown: The job may or may not be queued.
        """
        return self.enqueue_many([message], delay=delay)[0]

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
        now = self.clock()
        due, delay_ms = _due(delay, now)
        prepared: list[Message[R]] = []
        outgoing: list[Outgoing] = []
        held: list[tuple[str, str]] = []
        try:
            for message in messages:
                checked, extras = self._check(message)
                owner = self._hold_unique(checked, extras, due, now, held)
                if owner != checked.message_id:
                    prepared.append(dataclasses.replace(checked, message_id=owner))
                    continue
                self.declare_queue(checked.queue_name)
                self.emit_before("enqueue", checked, delay_ms)
                outgoing.append(self._outgoing(checked, due, delay_ms))
                prepared.append(checked)
            if outgoing:
                self.driver.put(outgoing, deadline=self._send_deadline)
        except PutError as error:
            maybe = {o.job_id for o in outgoing} - {o.job_id for o in error.not_queued}
            self._release(held, keep=maybe)
            self._emit_enqueued(prepared, maybe - {o.job_id for o in error.unknown}, delay_ms)
            raise _send_error(error, outgoing) from error
        except BaseException:
            self._release(held)
            raise
        self._emit_enqueued(prepared, {o.job_id for o in outgoing}, delay_ms)
        return prepared

    def _emit_enqueued(self, messages: Iterable[Message[Any]], sent: set[str], delay_ms: int | None) -> None:
        for message in messages:
            if message.message_id in sent:
                self.emit_after("enqueue", message, delay_ms)

    def prepare(self, message: Message[Any]) -> Outgoing:
        """A message as `enqueue` would queue it now: checked and signed. For a job that is sent once more with
        a mended payload; nothing is held or emitted.

        Raises:
            InvalidPayload: The arguments don't fit.
        """
        checked, _ = self._check(message)
        return self._outgoing(checked, None, None)

    def _check(self, message: Message[R]) -> tuple[Message[R], Extras]:
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
        if "callboard" not in options:
            options = {**options, "callboard": {"v": envelope.VERSION}}
        actor = self.actors.get(message.actor_name)
        if isinstance(actor, JobActor):
            try:
                checked = actor.payload.check(actor.payload.bind(message.args, message.kwargs))
                kwargs = actor.payload.to_wire(checked)
            except PayloadMismatch as error:
                raise InvalidPayload(
                    f"'{message.actor_name}' was not sent: {error}", job_id=job_id
                ) from error
            return _rebuilt(message, (), kwargs, options), extras
        if options is not message.options:
            message = _rebuilt(message, message.args, message.kwargs, options)
        return message, extras

    def _outgoing(self, message: Message[Any], due: float | None, delay_ms: int | None) -> Outgoing:
        del delay_ms
        try:
            body = envelope.encode(message)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise InvalidPayload(
                f"'{message.actor_name}' was not sent: its arguments are no JSON: {error}",
                job_id=message.message_id,
            ) from error
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

    # -- unique jobs -------------------------------------------------------------------------------------

    def _hold_unique(
        self,
        message: Message[Any],
        extras: Extras,
        due: float | None,
        now: float,
        held: list[tuple[str, str]],
    ) -> str:
        """The id of the job that has the key: this one's, if it is free or the job isn't unique."""
        if extras.unique is None:
            return message.message_id
        if self.store is None:
            raise NotQueued("a unique job needs a store, and this broker has none", job_id=message.message_id)
        wait = max(0.0, (due or now) - now)
        try:
            owner = self.store.claim_key(
                _unique_key(extras.unique), message.message_id, ttl=wait + UNIQUE_TTL.total_seconds()
            )
        except StoreUnavailable as error:
            raise NotQueued(
                f"not queued: whether the unique job is queued already can't be told: {error}",
                job_id=message.message_id,
            ) from error
        if owner == message.message_id:
            held.append((extras.unique, message.message_id))
        return owner

    def _release(self, held: Iterable[tuple[str, str]], keep: Iterable[str] = ()) -> None:
        kept = set(keep)
        for key, job_id in held:
            if job_id not in kept and self.store is not None:
                try:
                    self.store.release_key(_unique_key(key), job_id)
                except StoreUnavailable as error:
                    log.warning("unique key not released, it ends by itself", key=key, error=str(error))

    # -- receiving ---------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """What Dramatiq's own worker reads a queue with."""
        intake = self.open_intake([queue_name], budget=prefetch)
        return Consumer(self, intake, queue=queue_name, prefetch=prefetch, timeout=timeout / 1000)

    def open_intake(self, names: Sequence[str], *, budget: int) -> Intake:
        """A hand that claims from several queues."""
        paused = self.control.paused if self.control is not None else frozenset()
        return self.driver.open_intake(
            IntakeOptions(queues=list(names), budget=budget, worker=worker_name(), paused=frozenset(paused))
        )

    def receive(self, delivery: Delivery, intake: Intake) -> ClaimedMessage | None:
        """A claimed message, strictly read; None if it was quarantined, parked or sent to wait."""
        wire: envelope.Wire | None = None
        headers = Headers()
        try:
            if delivery.headers:
                headers = envelope.decode_headers(delivery.headers)
            wire = envelope.read(delivery.body, max_bytes=max(RECEIVE_LIMIT, self.max_message_bytes))
            if self._signer is not None:
                self._signer.verify(delivery.queue, delivery.body, headers.signature)
            options = wire.options
            extras = envelope.extras_of(options)
            if len(options) > ("callboard" in options):
                envelope.check_options(options, self._known_options)
        except UnknownExtras as error:
            assert wire is not None
            self._park(ClaimedMessage(wire, delivery, intake, headers, Extras()), str(error))
            return None
        except Unreadable as error:
            self._quarantine(delivery, intake, str(error))
            return None
        claimed = ClaimedMessage(wire, delivery, intake, headers, extras)
        actor = self.actors.get(wire.actor_name)
        if actor is None:
            self._park(claimed, f"no worker here knows the actor '{wire.actor_name}'")
            return None
        if isinstance(actor, JobActor) and extras.payload_version > actor.payload_version:
            self._park(
                claimed,
                f"its payload is of version {extras.payload_version}, and this worker knows {actor.payload_version}",
            )
            return None
        if "eta" in options and self._wait_for_eta(claimed):
            return None
        return claimed

    def _wait_for_eta(self, claimed: ClaimedMessage) -> bool:
        """A foreign producer's `eta`: it waits in the broker, not in this worker's memory."""
        eta = claimed.options.pop("eta")
        if eta is None or eta / 1000 <= self.clock():
            return False
        claimed.disposition = Later(State.SCHEDULED, due=eta / 1000)
        self.settle(claimed)
        return True

    def _park(self, claimed: ClaimedMessage, reason: str) -> None:
        now = self.clock()
        since = claimed.headers.parked_since or now
        if now - since >= self._park_deadline:
            claimed.fail()
            claimed.disposition = Die(f"parked for {timedelta(seconds=round(now - since))}: {reason}")
        else:
            wait = min(_PARK_LAST, max(_PARK_FIRST, now - since))
            claimed.disposition = Later(State.PARKED, due=now + wait, reason=reason)
        log.warning("job parked", job_id=claimed.message_id, actor=claimed.actor_name, reason=reason)
        self.finish(claimed)

    def _quarantine(self, delivery: Delivery, intake: Intake, reason: str) -> None:
        headers = Headers(
            state="quarantined", ready_at=self.clock(), reason=f"from {delivery.queue}: {reason}"
        )
        outgoing = Outgoing(queues.QUARANTINE, delivery.body, "", envelope.encode_headers(headers))
        log.error("message quarantined", queue=delivery.queue, reason=reason, size=len(delivery.body))
        if self._move(delivery, intake, outgoing) and self.store is not None:
            try:
                self.store.add("quarantined")
            except StoreUnavailable:
                log.warning("quarantine not counted: the store is away")

    # -- settling ----------------------------------------------------------------------------------------

    def finish(self, message: ClaimedMessage) -> None:
        """Settle a message between the hooks around ack and nack, as both workers do."""
        failed = message.failed
        self._call_hooks("before_nack" if failed else "before_ack", message)
        self.settle(message)
        self._call_hooks("after_nack" if failed else "after_ack", message)

    def settle(self, message: ClaimedMessage) -> None:
        """Do what the message's disposition says. Afterwards the disposition says what was done."""
        if message.settled:
            return
        disposition = self._resolved(message)
        message.disposition = disposition
        delivery, intake = message.delivery, message.intake
        if isinstance(disposition, Finish):
            intake.ack(delivery)
        elif isinstance(disposition, Later):
            if not self._move(delivery, intake, self._again(message, disposition)):
                message.disposition = Drop()
        elif isinstance(disposition, Die):
            if not self._move(delivery, intake, self._letter(message, disposition)):
                message.disposition = Drop()
        elif isinstance(disposition, GiveBack):
            intake.give_back([delivery])
        message.settled = True
        if disposition is DONE and message.extras.unique is None:
            return
        if isinstance(message.disposition, Finish | Die):
            self._let_go(message)

    def _resolved(self, message: ClaimedMessage) -> Finish | Later | Die | GiveBack | Drop:
        disposition = message.disposition
        if disposition is None:
            return Die("rejected by a middleware") if message.failed else DONE
        if not isinstance(disposition, HookFailed):
            return disposition
        failures = message.headers.hook_failures + 1
        text = f"{disposition.hook}: {type(disposition.error).__name__}: {disposition.error}"
        if failures >= MAX_HOOK_FAILURES:
            message.fail()
            return Die(f"middleware: {text}", traceback=dead_letter.format_traceback(disposition.error))
        message.failed = False
        message.headers.hook_failures = failures
        wait = min(_HOOK_LAST, _HOOK_FIRST * 2.0 ** (failures - 1))
        return Later(State.RETRYING, due=self.clock() + wait, reason=f"middleware: {text}")

    def _again(self, message: ClaimedMessage, later: Later) -> Outgoing:
        old = message.headers
        headers = msgspec.structs.replace(
            old,
            hop=old.hop + 1,
            state=str(later.state),
            ready_at=later.due,
            reason=later.reason,
            errors=list(old.errors),
        )
        if later.failed_run is not None:
            headers.attempt += 1
            headers.errors.append(later.failed_run)
        if later.state is State.SNOOZED:
            headers.snoozes += 1
        if later.state is State.PARKED:
            headers.parked_since = old.parked_since or self.clock()
        else:
            headers.parked_since = None
        due = later.due if later.due > self.clock() else None
        return Outgoing(
            message.delivery.queue,
            message.delivery.body,
            message.message_id,
            envelope.encode_headers(headers),
            due,
        )

    def _letter(self, message: ClaimedMessage, die: Die) -> Outgoing:
        headers = message.headers
        attempts = list(headers.errors)
        if die.failed_run is not None:
            attempts.append(die.failed_run)
        text, encoding = dead_letter.wrap(message.delivery.body)
        last = attempts[-1] if attempts else AttemptError(0, self.clock(), "", die.reason)
        letter = dead_letter.DeadLetter(
            job_id=message.message_id,
            actor=message.actor_name,
            queue=message.delivery.queue,
            died_at=self.clock(),
            death=headers.deaths + 1,
            reason=die.reason,
            fingerprint=die.fingerprint
            or dead_letter.fingerprint(message.actor_name, last.type, last.message),
            attempts=attempts,
            headers=headers,
            message=text,
            encoding=encoding,
            traceback=die.traceback[: 2 * dead_letter.MAX_TRACEBACK],
            enqueued_at=message.message_timestamp / 1000,
            tags=list(message.extras.tags),
        )
        category = queues.category_of(message.delivery.queue)
        return Outgoing(queues.dead_queue(category), dead_letter.encode(letter), message.message_id)

    def _move(self, delivery: Delivery, intake: Intake, outgoing: Outgoing) -> bool:
        """Move a message on, however long that takes. False if the claim was lost or given back meanwhile."""
        wait = 0.1
        while True:
            try:
                intake.move(delivery, outgoing)
            except PutError as error:
                if not intake.holds(delivery):
                    return False
                log.warning(
                    "message not moved, it stays claimed", queue=outgoing.queue, error=str(error), next=wait
                )
                if self.stopping.wait(wait):
                    intake.give_back([delivery])
                    return False
                wait = min(5.0, wait * 2)
            else:
                return True

    def _let_go(self, message: ClaimedMessage) -> None:
        """A job has ended: free its unique key, and forget that it was to be cancelled."""
        if message.extras.unique is not None:
            self._release([(message.extras.unique, message.message_id)])
        cancelled = isinstance(message.disposition, Finish) and message.disposition.state is State.CANCELLED
        if cancelled and self.store is not None:
            try:
                self.store.forget_cancel(message.message_id)
            except StoreUnavailable as error:
                log.warning("cancellation not forgotten", job_id=message.message_id, error=str(error))

    # -- hooks -------------------------------------------------------------------------------------------

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
        if signal == "worker_boot":
            self.stopping.clear()
            if self.control is not None:
                self.control.start()
            if isinstance(args[0], dramatiq.Worker):
                take_over(args[0], self)
        elif signal == "worker_shutdown":
            self.stopping.set()
            if isinstance(args[0], dramatiq.Worker):
                give_back_unstarted(args[0], self)

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
        message.started_at = self.clock()
        self.running[threading.get_ident()] = message
        for hook in self._hooks_of("before_process_message"):
            try:
                hook(self, message)
            except MiddlewareError:
                if message.disposition is None and not message.failed:
                    message.disposition = Finish(State.DISCARDED, reason=f"skipped by {_hook_name(hook)}")
                raise
            except _HOOK_ERRORS as error:
                log.exception(
                    "hook failed, the job doesn't run", hook=_hook_name(hook), job_id=message.message_id
                )
                message.disposition = HookFailed(_hook_name(hook), error)
                raise SkipMessage(f"{_hook_name(hook)} failed") from error

    def after_run(self, message: ClaimedMessage, result: Any, error: BaseException | None) -> None:
        """Run the hooks after a job's body, whether it succeeded or failed."""
        self.running.pop(threading.get_ident(), None)
        options = message.options
        plain = error is None and result is None and not message.failed
        if plain and len(options) <= ("callboard" in options):
            hooks = self._hooks_after_plain_run(message.actor_name)
        else:
            hooks = self._hooks_of("after_process_message")
        failed: HookFailed | None = None
        for hook in hooks:
            try:
                hook(self, message, result=result, exception=error)
            except _HOOK_ERRORS as raised:
                log.exception("hook failed", hook=_hook_name(hook), job_id=message.message_id)
                failed = failed or HookFailed(_hook_name(hook), raised)
        self._note_failure(message, failed)

    def after_skip(self, message: ClaimedMessage) -> None:
        """Run the hooks after a job that `before_run` kept from running."""
        self.running.pop(threading.get_ident(), None)
        self._note_failure(message, self._call_hooks("after_skip_message", message))

    def _note_failure(self, message: ClaimedMessage, failed: HookFailed | None) -> None:
        if failed is not None and not isinstance(message.disposition, Drop | GiveBack):
            message.disposition = failed

    def _call_hooks(self, method: str, *args: Any, **kwargs: Any) -> HookFailed | None:
        """Run every hook, whatever the others do; returns the first failure."""
        failed: HookFailed | None = None
        for hook in self._hooks_of(method):
            try:
                hook(self, *args, **kwargs)
            except _HOOK_ERRORS as error:
                log.exception("hook failed", hook=_hook_name(hook))
                failed = failed or HookFailed(_hook_name(hook), error)
        return failed

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

    # -- what a run reports (see `callboard.context.Reporter`) -----------------------------------------------

    def report_progress(self, run: Run, fraction: float | None, note: str) -> None:
        """Record how far a run is."""
        if self.recorder is not None:
            self.recorder.record(
                Change(
                    job_id=run.id,
                    order=run.order,
                    state=State.RUNNING,
                    at=self.clock(),
                    progress=fraction,
                    progress_note=note or None,
                )
            )

    def is_cancelled(self, job_id: str) -> bool:
        """Whether a job is to stop, as far as this process knows; it learns within a second."""
        return self.control is not None and job_id in self.control.cancelled

    def is_paused(self, queue_name: str) -> bool:
        """Whether nothing is to be claimed from a queue, as far as this process knows."""
        return self.control is not None and queue_name in self.control.paused

    def save_checkpoint(self, job_id: str, state: bytes) -> None:
        """Keep a run's state for the next run."""
        if self.store is None:
            raise StoreUnavailable("checkpoints need a store, and this broker has none")
        self.store.put_result(f"checkpoint:{job_id}", state, ttl=_CHECKPOINT_TTL.total_seconds())

    def load_checkpoint(self, job_id: str) -> bytes | None:
        """The state that an earlier run kept."""
        return self.store.get_result(f"checkpoint:{job_id}") if self.store is not None else None

    # -- the rest of Dramatiq's interface ------------------------------------------------------------------

    def flush(self, queue_name: str) -> None:
        """Drop all that waits in a queue. For tests; people purge with `callboard queues purge`."""
        self.driver.purge(queue_name)

    def flush_all(self) -> None:
        """Drop all that waits in all declared queues. For tests."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until a queue is empty and none of its jobs runs. For tests.

        Raises:
            QueueJoinTimeout: After `timeout` milliseconds.
        """
        end = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            counts = self.driver.counts([queue_name])[queue_name]
            if not (counts.ready or counts.claimed or counts.delayed):
                return
            if end is not None and time.monotonic() > end:
                raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]
            time.sleep(0.01)

    def close(self) -> None:
        """Write what is still to be recorded, and let go of connections and files."""
        self.stopping.set()
        if self.control is not None:
            self.control.stop()
        if not self.running:  # the claims of jobs that run on end with the process, not before
            self.driver.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.store is not None:
            self.store.close()


def _is_idle_after_plain_run(middleware: Any, actor_options: Mapping[str, Any]) -> bool:
    """Whether a middleware's `after_process_message` has nothing to do after a plain run of an actor.

    It says so itself: `idle_without` holds the options without which that is so, perhaps none.
    """
    idle_without = _IDLE_WITHOUT.get(type(middleware), getattr(middleware, "idle_without", None))
    if idle_without is None or getattr(middleware, "store_results", False):
        return False
    return not any(actor_options.get(option) for option in idle_without)


def job_order(message: MessageProxy, state: State) -> int:
    """How new a state of a claimed message is; see `callboard.states.order`."""
    headers = message.headers if isinstance(message, ClaimedMessage) else Headers()
    return order(headers.hop, state)


def _inside_run(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def body(*args: Any, **kwargs: Any) -> Any:
        run = running_job()
        return fn(*args, **kwargs) if run is None else run.call(fn, args, kwargs)

    return body


def _is_local(fn: Callable[..., Any]) -> bool:
    return "<locals>" in getattr(fn, "__qualname__", "")


def _due(delay: int | timedelta | None, now: float) -> tuple[float | None, int | None]:
    """When a delayed job is due, and its delay in milliseconds."""
    if delay is None:
        return None, None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay / 1000
    if seconds > MAX_DELAY.total_seconds():
        raise ValueError(f"a job can wait {MAX_DELAY.days} days at most, not {timedelta(seconds=seconds)}")
    if seconds <= 0:
        return None, None
    return now + seconds, round(seconds * 1000)


def _rebuilt(
    message: Message[R], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Any
) -> Message[R]:
    """A copy; `dataclasses.replace` takes four times as long."""
    return Message(
        queue_name=message.queue_name,
        actor_name=message.actor_name,
        args=args,
        kwargs=dict(kwargs),
        options=options,
        message_id=message.message_id,
        message_timestamp=message.message_timestamp,
    )


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


def _unique_key(key: str) -> str:
    return f"unique:{key}"


def _hook_name(hook: Callable[..., Any]) -> str:
    return f"{type(getattr(hook, '__self__', None)).__name__}.{getattr(hook, '__name__', '?')}"
