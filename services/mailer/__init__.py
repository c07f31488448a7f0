"""Mails from templates, over SMTP.

    mailer.send(["ada@example.org"], "welcome", {"name": "Ada", ...}, message_id=current_job().id)

Everything that can be wrong with the mail itself is found before a connection is opened, and is `Permanent`.
The Message-ID is made from the job's id, so a mail that goes out twice after a crash can be recognised.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path

import structlog
from pydantic import Field, SecretStr

from callboard.errors import Permanent
from callboard.settings import CallboardSettings
from services import storage
from services.default import Default
from services.mailer.addresses import InvalidAddress, InvalidSubject, check_subject, parse_address
from services.mailer.smtp import MailNotConfigured, MailRejected, MailServer, MailTemporary, SmtpConnections
from services.mailer.templates import RenderedMail, TemplateFailed, Templates, UnknownTemplate

__all__ = [
    "InvalidAddress",
    "InvalidSubject",
    "MailNotConfigured",
    "MailRejected",
    "MailReport",
    "MailServer",
    "MailSettings",
    "MailTemporary",
    "MailTooLarge",
    "Mailer",
    "RenderedMail",
    "SmtpConnections",
    "TemplateFailed",
    "Templates",
    "UnknownTemplate",
    "default",
    "send",
]

TEMPLATES = Path(__file__).parent.parent.parent / "content" / "templates"

# Readers differ in what they take for a line that may be long or hold 8-bit letters; 7-bit passes everywhere.
_POLICY = SMTP.clone(cte_type="7bit")

_log = structlog.get_logger()


class MailTooLarge(Permanent):
    """The mail is over the size limit, `CALLBOARD_MAIL_MAX_BYTES`."""


class MailSettings(CallboardSettings):
    """The mail server, and whom mails come from."""

    mail_url: SecretStr | None = Field(
        None,
        description="The mail server: smtp://USER:PASSWORD@HOST:587 (STARTTLS is required, unless "
        "?starttls=never is given and no user) or smtps://...; ?ca=FILE trusts that authority only.",
    )
    mail_from: str | None = Field(
        None, description="Whom mails come from: jobs@example.org, or Jobs <jobs@example.org>."
    )
    mail_timeout: float = Field(30.0, gt=0, description="Seconds to wait for each answer of the mail server.")
    mail_max_bytes: int = Field(
        25_000_000, ge=1024, description="The largest mail in bytes, counting its attachments."
    )


@dataclass(frozen=True, slots=True)
class MailReport:
    """What became of a mail: `refused` maps addresses that the server refused for good to its answers."""

    message_id: str
    accepted: tuple[str, ...]
    refused: Mapping[str, str]


class Mailer:
    """Renders mails and hands them to one server. Safe to use from several threads.

    `connections` and `sender` may be missing, as they are before anything is configured; then `send` says so.
    """

    def __init__(
        self,
        *,
        connections: SmtpConnections | None,
        sender: Address | str | None,
        storage: storage.Storage,
        templates: Templates,
        max_bytes: int = 25_000_000,
    ) -> None:
        self._connections = connections
        self._sender = parse_address(sender) if isinstance(sender, str) else sender
        self._storage = storage
        self._templates = templates
        self._max_bytes = max_bytes

    def send(
        self,
        to: str | Sequence[str],
        template: str,
        context: Mapping[str, object] | None = None,
        *,
        message_id: str,
        subject: str | None = None,
        attachments: Sequence[str] = (),
    ) -> MailReport:
        """Send one mail to everyone in `to`, who see each other's addresses.

        `subject` takes the place of the template's. `attachments` are storage keys; the last part of each is
        the file's name. `message_id` is the job's id.

        Raises:
            MailTemporary: the server can't be reached, or puts the mail off; nobody has got it.
            MailRejected: the server refuses the mail, or everyone in `to`.
            MailNotConfigured: a setting is missing, or the server lacks the TLS or log-in that it asks for.
            Permanent: the mail itself is wrong: an address, the subject, the template, a value that the
                template misses, an attachment that doesn't exist, or its size.
            MissingExtra: the template needs a library that isn't installed.
        """
        if self._connections is None:
            raise MailNotConfigured("no mail server: set CALLBOARD_MAIL_URL to smtp://user:password@host:587")
        if self._sender is None:
            raise MailNotConfigured("no sender: set CALLBOARD_MAIL_FROM to the address that mails come from")
        recipients = _addresses([to] if isinstance(to, str) else to)
        message = EmailMessage(policy=_POLICY)
        message["Message-ID"] = _message_id(message_id, self._sender.domain)
        message["Date"] = formatdate()
        message["From"] = self._sender
        message["To"] = recipients
        message["Auto-Submitted"] = "auto-generated"
        _fill(message, self._templates.render(template, context or {}), subject, template)
        self._attach(message, attachments)
        data = message.as_bytes()
        if len(data) > self._max_bytes:
            raise MailTooLarge(f"the mail has {len(data):,} bytes, over the limit of {self._max_bytes:,}")
        plain = [recipient.addr_spec for recipient in recipients]
        refused = self._connections.deliver(self._sender.addr_spec, plain, data)
        if refused:
            _log.warning("mail_partly_refused", message_id=message["Message-ID"], refused=refused)
        accepted = tuple(address for address in plain if address not in refused)
        return MailReport(message["Message-ID"], accepted, refused)

    def close(self) -> None:
        """Close the connections that are kept for the next mail."""
        if self._connections:
            self._connections.close()

    def _attach(self, message: EmailMessage, keys: Sequence[str]) -> None:
        left = self._max_bytes
        for key in keys:
            data = self._storage.read(key, limit=left)
            left -= len(data)
            name = key.rpartition("/")[2]
            kind, encoding = mimetypes.guess_type(name)
            main, _, sub = (kind if kind and not encoding else "application/octet-stream").partition("/")
            message.add_attachment(data, maintype=main, subtype=sub, filename=name)


def _addresses(to: Sequence[str]) -> tuple[Address, ...]:
    if not to:
        raise InvalidAddress("a mail needs at least one address to go to")
    parsed = [parse_address(text) for text in to]
    return tuple({address.addr_spec: address for address in parsed}.values())


def _message_id(job_id: str, domain: str) -> str:
    """Job ids may hold what a Message-ID may not, such as ':'; that is written as `=3A`."""
    return f"<{re.sub(r'[^A-Za-z0-9_-]', lambda found: f'={ord(found[0]):02X}', job_id)}@{domain}>"


def _fill(message: EmailMessage, rendered: RenderedMail, subject: str | None, template: str) -> None:
    subject = subject if subject is not None else rendered.subject
    if subject is None:
        raise Permanent(f"the mail template '{template}' has no subject.txt: pass a subject")
    message["Subject"] = check_subject(subject)
    message.set_content(rendered.text)
    if rendered.html is not None:
        message.add_alternative(rendered.html, subtype="html")


def _build() -> Mailer:
    settings = MailSettings.load()
    server = MailServer.parse(settings.mail_url.get_secret_value()) if settings.mail_url else None
    try:
        sender = parse_address(settings.mail_from) if settings.mail_from else None
    except InvalidAddress as error:
        raise MailNotConfigured(f"CALLBOARD_MAIL_FROM: {error}") from error
    return Mailer(
        connections=SmtpConnections(server, timeout=settings.mail_timeout) if server else None,
        sender=sender,
        storage=storage.default(),
        templates=Templates(TEMPLATES),
        max_bytes=settings.mail_max_bytes,
    )


default: Default[Mailer] = Default(_build, needs=[storage.default])


def send(
    to: str | Sequence[str],
    template: str,
    context: Mapping[str, object] | None = None,
    *,
    message_id: str,
    subject: str | None = None,
    attachments: Sequence[str] = (),
) -> MailReport:
    """Send one mail over the server of `CALLBOARD_MAIL_URL`; see `Mailer.send`."""
    return default().send(
        to, template, context, message_id=message_id, subject=subject, attachments=attachments
    )
