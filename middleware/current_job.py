"""Makes the run visible to the job: `callboard.current_job()`."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, Middleware

from callboard.brokers.base import Broker as CallboardBroker
from callboard.context import Run, enter_run
from callboard.states import State, order


class CurrentJob(Middleware):
    """Opens a `Run` before the actor's body, and closes it after."""

    def before_process_message(self, broker: Broker, message: Any) -> None:
        assert isinstance(broker, CallboardBroker)
        run = Run(
            job_id=message.message_id,
            actor=message.actor_name,
            queue=message.queue_name,
            attempt=message.attempt,
            reporter=broker,
            order=order(message.headers.hop, State.RUNNING),
            tags=tuple(message.extras.tags),
            replayed=message.headers.deaths > 0,
        )
        message.run = run
        enter_run(run)

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        enter_run(None)
        message.run.report()

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        enter_run(None)
