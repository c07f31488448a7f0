"""The rules of receiving: what is claimed is read strictly, or parked, or quarantined."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any

import dramatiq

from callboard import envelope, queues
from callboard.actor import JobActor
from callboard.brokers.claim import ClaimedMessage, Die, Later
from callboard.brokers.driver import Delivery, Intake, IntakeOptions, Outgoing
from callboard.brokers.settling import Settling
from callboard.envelope import Extras, Headers, UnknownExtras
from callboard.errors import (
    StoreUnavailable,
    Unreadable,
    text_of,
)
from callboard.loggers import get_logger
from callboard.payload import PayloadMismatch
from callboard.process import worker_name
from callboard.states import State
from callboard.versions import CannotUpcast

log = get_logger(__name__)

#: A received message may be larger than the limit of a send, for other producers have other limits.
RECEIVE_LIMIT = 16 * 1024 * 1024
_PARK_FIRST, _PARK_LAST = 5.0, 60.0


def _time_limit(actor: dramatiq.Actor[Any, Any]) -> tuple[str, float]:
    """An actor's name, and its own time limit in seconds."""
    limit: timedelta | float = actor.options.get("time_limit") or 0
    return actor.actor_name, limit.total_seconds() if isinstance(limit, timedelta) else limit / 1000


class Receiving(Settling):
    """Turns deliveries into messages."""

    def open_intake(self, names: Sequence[str], *, budget: int) -> Intake:
        """A hand that claims from several queues."""
        paused = self.control.paused if self.control is not None else frozenset()
        return self.driver.open_intake(
            IntakeOptions(
                queues=list(names),
                budget=budget,
                worker=worker_name(),
                paused=frozenset(paused),
                longest=max(map(_time_limit, self.actors.values()), key=itemgetter(1), default=("", 0.0)),
            )
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
        except Exception as error:
            log.exception("a message can't be read, for an unforeseen reason", queue=delivery.queue)
            self._quarantine(delivery, intake, f"{type(error).__name__}: {text_of(error, limit=300)}")
            return None
        claimed = ClaimedMessage(wire, delivery, intake, headers, extras)
        actor = self.actors.get(wire.actor_name)
        if actor is None:
            self._park(claimed, f"no worker here knows the actor '{wire.actor_name}'")
            return None
        if (
            isinstance(actor, JobActor)
            and extras.payload_version != actor.payload_version
            and not self._bring_up_to_date(claimed, actor)
        ):
            return None
        if "eta" in options and self._wait_for_eta(claimed):
            return None
        return claimed

    def _bring_up_to_date(self, claimed: ClaimedMessage, actor: JobActor[..., Any]) -> bool:
        """Have the payload of another version be one of today's. False if the job is parked: another worker,
        perhaps one that isn't deployed yet, may know how."""
        sent, known = claimed.extras.payload_version, actor.payload_version
        if sent > known:
            self._park(claimed, f"its payload is of version {sent}, and this worker knows {known}")
            return False
        try:
            fields = actor.upcast(claimed.args, claimed.kwargs, version=sent)
            actor.payload.check(fields)
        except (CannotUpcast, PayloadMismatch) as error:
            self._park(
                claimed, f"its payload of version {sent} can't be made one of version {known}: {error}"
            )
            return False
        claimed.args, claimed.kwargs = (), fields
        return True

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
