"""Ticks become jobs: each one job, whoever serves it.

A tick is a moment at which a schedule is due. The id of its job is the tick's, `<actor>:<seconds since the
epoch>`. Whoever serves a schedule, `callboard scheduler` or periodiq, holds it in the store meanwhile, looks
whether the tick was dealt with, sends the job, and marks the tick. One that dies in between is waited for until
its hold is over, and not at all where it can be told that its process is gone.

If it died between the send and the mark, the job is queued twice, under one id. The two messages differ in when
they were made: the first to run takes the tick (`is_taken`), and the other goes. So does what is sent once more
because its fate was unknown, or by a process that was frozen while it held the schedule.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from callboard.actor import JobActor
from callboard.cron import Cron
from callboard.errors import FateUnknown, NotQueued, StoreUnavailable
from callboard.loggers import get_logger
from callboard.process import worker_name
from callboard.store.base import TICKS_KEPT, Fate, Tick

if TYPE_CHECKING:
    from dramatiq import Message

    from callboard.brokers.base import Broker
    from callboard.brokers.claim import ClaimedMessage
    from callboard.store.base import ScheduleState, Store

log = get_logger(__name__)

_BEYOND_SEND = 10.0  # seconds that a schedule is held beyond the send's deadline
_TAKEN = 30 * 86_400.0  # seconds for which a tick belongs to the message that ran
_AGAIN = 0.2  # seconds between two looks at a schedule in another's hands


class Ticks:
    """Serves the ticks of a broker's schedules. One thread's own; there may be many, in any processes.

    Args:
        broker: Where the actors are declared; it has a store.
        deadline: Seconds that a send may take.

    Attributes:
        noted: Called with what became of each tick, once that is written down.
    """

    def __init__(self, broker: Broker, *, deadline: float) -> None:
        self.name = f"{worker_name()}.{secrets.token_hex(3)}"
        self._broker = broker
        self._hold_for = deadline + _BEYOND_SEND
        self.noted: Callable[[Tick], object] = lambda tick: None

    @property
    def store(self) -> Store:
        """Where ticks are claimed and marked.

        Raises:
            StoreUnavailable: The broker has none.
        """
        if self._broker.store is None:
            raise StoreUnavailable("schedules need a store, and this broker has none")
        return self._broker.store

    def serve(self, actor: JobActor[..., Any], moment: datetime) -> Message[Any]:
        """Send the job of the tick at or before a moment, unless that was dealt with: what periodiq calls.

        Waits while the schedule is in another's hands, who may be about to send it or may have died, and while the
        store or the broker is away, for half a minute.

        Returns:
            The tick's job, whoever sent it.

        Raises:
            SendError: The job couldn't be sent, or may or may not be queued.
        """
        tick = schedule_of(actor).floor(moment)
        if self._broker.store is None:
            return self._broker.enqueue(tick_message(actor, tick))
        end = monotonic() + 2 * self._hold_for
        while True:
            try:
                return self._serve(actor, tick)
            except (NotQueued, FateUnknown):
                if monotonic() > end:
                    raise
            sleep(_AGAIN)

    def _serve(self, actor: JobActor[..., Any], tick: datetime) -> Message[Any]:
        job_id = tick_id(actor, tick)
        try:
            with self.held(actor) as mine:
                if self.is_done(actor, tick):
                    return tick_message(actor, tick)
                if mine:
                    return self.settle(actor, tick) or tick_message(actor, tick)
        except StoreUnavailable as error:
            raise NotQueued(f"not queued: the tick can't be claimed: {error}", job_id=job_id) from error
        raise NotQueued("not queued yet: another process serves the schedule", job_id=job_id)

    @contextmanager
    def held(self, actor: JobActor[..., Any]) -> Iterator[bool]:
        """Hold a schedule until the block ends; False if another holds it.

        Raises:
            StoreUnavailable
        """
        key = _key(actor)
        owner = self.store.claim_key(key, self.name, ttl=self._hold_for)
        if owner != self.name and _is_gone(owner):
            self.store.release_key(key, owner)
            owner = self.store.claim_key(key, self.name, ttl=self._hold_for)
        try:
            yield owner == self.name
        finally:
            if owner == self.name:
                with suppress(StoreUnavailable):  # then it ends by itself
                    self.store.release_key(key, owner)

    def renew(self, actor: JobActor[..., Any]) -> bool:
        """Hold a schedule for longer. False if another holds it by now.

        Raises:
            StoreUnavailable
        """
        return self.store.claim_key(_key(actor), self.name, ttl=self._hold_for) == self.name

    def is_done(self, actor: JobActor[..., Any], tick: datetime) -> bool:
        """Whether a tick was dealt with.

        Raises:
            StoreUnavailable
        """
        due = tick.timestamp()
        state = self.store.schedules().get(actor.actor_name)
        if state is not None and state.until is not None and due <= state.until:
            return True
        return due in self.told(actor)

    def told(self, actor: JobActor[..., Any]) -> set[float]:
        """The ticks, up to now, of which it is known what became of them. Of several in a row it is only the last.

        Raises:
            StoreUnavailable
        """
        now = self._broker.clock()
        lines = self.store.ticks(actor.actor_name, limit=TICKS_KEPT)
        return {line.due for line in lines if line.due <= now}

    def settle(
        self,
        actor: JobActor[..., Any],
        tick: datetime,
        fate: Fate = Fate.ON_TIME,
        *,
        until: float | None = None,
    ) -> Message[Any] | None:
        """Deal with a tick: send its job, or skip it, and write down what became of it. To be called while the
        schedule is held.

        Args:
            tick: The tick.
            fate: What it is called if it is sent.
            until: Every tick up to this moment is dealt with, too.

        Returns:
            The job, if it was sent.

        Raises:
            StoreUnavailable
            SendError: The job couldn't be sent, or may or may not be queued.
        """
        due = tick.timestamp()
        state = self.store.schedules().get(actor.actor_name)
        if state is not None and state.paused_at is not None:
            self.note(actor, due, Fate.PAUSED, reason=paused_text(state), until=until)
            return None
        skips_overlap = schedule_of(actor).overlap == "skip"
        if skips_overlap and (running := self._unended(actor)):
            self.note(actor, due, Fate.OVERLAP, reason=f"{running} hadn't ended", until=until)
            return None
        message = self._broker.enqueue(tick_message(actor, tick))
        if skips_overlap and self._broker.recorder is not None:
            self._broker.recorder.flush()  # by its record the next tick sees that this one's job hasn't ended
        try:
            self.note(actor, due, fate, job_id=message.message_id, until=until)
        except StoreUnavailable as error:  # it is sent once more, and runs once all the same
            log.warning("tick sent and not marked", job_id=message.message_id, error=str(error))
        return message

    def _unended(self, actor: JobActor[..., Any]) -> str:
        """The job of the last tick, if it hasn't ended. One without a record has: only those are forgotten."""
        sent = [told for told in self.store.ticks(actor.actor_name, limit=TICKS_KEPT) if told.job_id]
        if not sent:
            return ""
        last = max(sent, key=lambda told: told.at)
        record = self.store.get(last.job_id)
        return "" if record is None or record.state.is_end else last.job_id

    def note(self, actor: JobActor[..., Any], due: float, fate: Fate, **told: Any) -> None:
        """Write down what became of a tick, or of several in a row; see `callboard.store.base.Tick`.

        Raises:
            StoreUnavailable
        """
        until = told.pop("until", None)
        now = self._broker.clock()
        tick = Tick(schedule=actor.actor_name, due=due, fate=fate, at=now, **{"by": worker_name(), **told})
        self.store.add_tick(tick, until=until)
        self.noted(tick)

    def run_now(self, actor: JobActor[..., Any], *, by: str) -> Message[Any]:
        """Send a schedule's job now, whether it is paused or not; it is no tick's.

        Raises:
            SendError: The job couldn't be sent, or may or may not be queued.
        """
        now = self._broker.clock()
        job_id = f"{actor.actor_name}:now:{round(now * 1000)}"
        message = self._broker.enqueue(actor.using(job_id=job_id).message())
        if self._broker.recorder is not None:
            self._broker.recorder.flush()
        # A tick is a whole second, and each has one line.
        due = now if now % 1 else now + 0.001
        try:
            self.note(actor, due, Fate.RUN_NOW, job_id=job_id, by=by)
        except StoreUnavailable as error:
            log.warning("run now, and not written down", job_id=job_id, error=str(error))
        return message


def scheduled_actors(broker: Broker) -> list[JobActor[..., Any]]:
    """The actors that start by themselves."""
    actors = broker.actors.values()
    return [a for a in actors if isinstance(a, JobActor) and isinstance(a.options.get("periodic"), Cron)]


def paused_text(state: ScheduleState) -> str:
    """Who paused a schedule."""
    return f"paused by {state.paused_by}" if state.paused_by else "paused"


def _key(actor: JobActor[..., Any]) -> str:
    return f"schedule:{actor.actor_name}"


def schedule_of(actor: JobActor[..., Any]) -> Cron:
    """The schedule of an actor that has one."""
    schedule: Cron = actor.options["periodic"]
    return schedule


def tick_id(actor: JobActor[..., Any], tick: datetime) -> str:
    """The id of a tick's job."""
    return f"{actor.actor_name}:{round(tick.timestamp())}"


def tick_message(actor: JobActor[..., Any], tick: datetime) -> Message[Any]:
    """The job of a tick."""
    message = actor.using(job_id=tick_id(actor, tick)).message()
    extras = {**message.options["callboard"], "tick": tick.timestamp()}
    return replace(message, options={**message.options, "callboard": extras})


def is_taken(store: Store, message: ClaimedMessage) -> bool:
    """Whether a tick belongs to another message than this one, which is about to run.

    Raises:
        StoreUnavailable
    """
    mine = str(message.message_timestamp)
    return store.claim_key(f"tick:{message.message_id}", mine, ttl=_TAKEN) != mine


def _is_gone(owner: str) -> bool:
    """Whether somebody who serves ticks is a process of this host that has ended. False where that can't be told.

    In a container that was started again, the process before had our name and number.
    """
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():
        return not owner.startswith(worker_name())
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
