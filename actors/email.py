"""Mail that goes out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from broker import actor
from callboard import Priority, RetryPolicy, current_job
from services import mailer


@actor(
    priority=Priority.HIGH,
    retries=RetryPolicy(attempts=8, base=timedelta(seconds=5), cap=timedelta(minutes=30)),
    time_limit=timedelta(minutes=2),
)
def send_email(
    to: list[str],
    template: str,
    context: dict[str, Any] | None = None,
    subject: str | None = None,
    attachments: list[str] | None = None,
) -> None:
    """Send one mail from a template; attachments are storage keys.

    Run twice, it sends twice, under one Message-ID, which is made from the job's id: mail servers and
    readers can tell that it is a repeat.
    """
    mailer.send(
        to,
        template,
        context or {},
        subject=subject,
        attachments=attachments or (),
        message_id=current_job().id,
    )
