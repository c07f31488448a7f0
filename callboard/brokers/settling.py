"""Doing what a message's disposition says: whatever moves it on is confirmed before the claim is let go."""

from __future__ import annotations

import msgspec

from callboard import dead_letter, envelope, queues
from callboard.brokers import unique
from callboard.brokers.claim import (
    DONE,
    ClaimedMessage,
    Die,
    Drop,
    Finish,
    GiveBack,
    HookFailed,
    Later,
    Merge,
)
from callboard.brokers.driver import Delivery, Intake, Outgoing, PutError
from callboard.brokers.hooks import Hooks
from callboard.envelope import AttemptError
from callboard.errors import (
    MAX_WAIT,
    StoreUnavailable,
    printable,
    text_of,
)
from callboard.loggers import get_logger
from callboard.states import State

log = get_logger(__name__)

MAX_HOOK_FAILURES = 20
_HOOK_FIRST, _HOOK_LAST = 1.0, 60.0


def checkpoint_key(job_id: str) -> str:
    """Where the store keeps what a job's runs pass on to the next one."""
    return f"checkpoint:{job_id}"


class Settling(Hooks):
    """Ends claims."""

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
        if isinstance(disposition, Finish | Merge):
            intake.ack(delivery)
        elif isinstance(disposition, Later):
            if not self._move(delivery, intake, self._again(message, disposition)):
                message.disposition = Drop()
        elif isinstance(disposition, Die):
            if not self._move(delivery, intake, self._letter(message, disposition)):
                message.disposition = Drop()
        elif isinstance(disposition, GiveBack) or intake.holds(delivery):
            intake.give_back([delivery])
        message.settled = True
        if self.with_checkpoint:
            self._forget_checkpoint(message)
        if disposition is DONE and message.extras.unique is None:
            return
        if isinstance(message.disposition, Finish | Die):
            self._let_go(message)

    def _resolved(self, message: ClaimedMessage) -> Finish | Later | Die | GiveBack | Drop | Merge:
        disposition = message.disposition
        if disposition is None:
            return Die("rejected by a middleware") if message.failed else DONE
        if not isinstance(disposition, HookFailed):
            return disposition
        failures = message.headers.hook_failures + 1
        text = f"{disposition.hook}: {type(disposition.error).__name__}: {text_of(disposition.error, limit=1000)}"
        if failures >= MAX_HOOK_FAILURES:
            message.fail()
            return Die(f"middleware: {text}", traceback=dead_letter.format_traceback(disposition.error))
        message.failed = False
        message.headers.hook_failures = failures
        wait = min(_HOOK_LAST, _HOOK_FIRST * 2.0 ** (failures - 1))
        return Later(State.RETRYING, due=self.clock() + wait, reason=f"middleware: {text}")

    def _again(self, message: ClaimedMessage, later: Later) -> Outgoing:
        old, now = message.headers, self.clock()
        due = min(later.due, now + MAX_WAIT.total_seconds())
        headers = msgspec.structs.replace(
            old,
            hop=old.hop + 1,
            state=str(later.state),
            ready_at=due,
            reason=later.reason,
            errors=list(old.errors),
            slot=later.slot,
        )
        if later.failed_run is not None:
            headers.attempt += 1
            headers.errors.append(later.failed_run)
        if later.state is State.SNOOZED and later.slot is None:
            headers.snoozes += 1
        if later.state is State.PARKED:
            headers.parked_since = old.parked_since or now
        else:
            headers.parked_since = None
        return Outgoing(
            message.delivery.queue,
            message.delivery.body,
            message.message_id,
            envelope.encode_headers(headers),
            due if due > now else None,
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
            reason=printable(die.reason),
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

    def _forget_checkpoint(self, message: ClaimedMessage) -> None:
        """Remove the checkpoint of a job that has ended. A dead one keeps its own: it may be replayed."""
        if message.message_id not in self.with_checkpoint:
            return
        self.with_checkpoint.discard(message.message_id)
        if isinstance(message.disposition, Finish) and self.store is not None:
            try:
                self.store.remove_result(checkpoint_key(message.message_id))
            except StoreUnavailable as error:
                log.warning("checkpoint not removed", job_id=message.message_id, error=str(error))

    def _let_go(self, message: ClaimedMessage) -> None:
        """A job has ended: free its unique key, and forget that it was to be cancelled."""
        extras = message.extras
        if extras.unique is not None and extras.unique_for is None:
            unique.release(self.store, [(unique.name_of(extras), message.message_id)])
        cancelled = isinstance(message.disposition, Finish) and message.disposition.state is State.CANCELLED
        if not cancelled and self.control is not None:
            cancelled = message.message_id in self.control.cancelled
        if cancelled and self.store is not None:
            try:
                self.store.forget_cancel(message.message_id)
            except StoreUnavailable as error:
                log.warning("cancellation not forgotten", job_id=message.message_id, error=str(error))
