"""A mail server that keeps every mail it gets as a file, and puts some recipients off at first.

It does what greylisting servers do: to a stranger they answer "451, try again later", and take the mail when
the sender does.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Self

from callboard.demo.failures import DemoNotPossible

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

_PUT_OFF = "451 4.7.1 Greylisted, try again later"


class MailSink:
    """A running mail server on a free port of the loopback, in a thread of its own.

    Args:
        folder: Where each mail is kept, as MESSAGE-ID.eml.
        put_off: How often a recipient is put off, before a mail is taken.

    Raises:
        DemoNotPossible: aiosmtpd isn't installed.
    """

    def __init__(self, folder: Path, put_off: Mapping[str, int]) -> None:
        try:
            from aiosmtpd.smtp import SMTP
        except ImportError as error:
            raise DemoNotPossible(
                "the demo's mail server isn't installed (aiosmtpd): run 'make demo' in Callboard's checkout"
            ) from error
        self._folder = folder
        self._put_off = dict(put_off)
        self._arrivals: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            self._loop.create_server(
                lambda: SMTP(self, loop=self._loop, hostname="mail.callboard.example"), "127.0.0.1", 0
            )
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo-mail-sink", daemon=True)
        self._thread.start()

    def arrivals(self, message_id: str) -> int:
        """How often a mail came, by the part of its Message-ID before the @."""
        return self._arrivals[message_id]

    @property
    def repeats(self) -> int:
        """How many mails came again under a Message-ID that had come before."""
        return self._arrivals.total() - len(self._arrivals)

    def close(self) -> None:
        """Stop serving. Twice is fine."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._hang_up())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """aiosmtpd's hook: whether a recipient is taken."""
        if self._put_off.get(address, 0) > 0:
            self._put_off[address] -= 1
            return _PUT_OFF
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """aiosmtpd's hook: a mail has come."""
        content = envelope.original_content or b""
        message_id = str(message_from_bytes(content)["Message-ID"]).strip("<> ").partition("@")[0]
        (self._folder / f"{message_id}.eml").write_bytes(content)
        self._arrivals[message_id] += 1
        return "250 OK"

    async def _hang_up(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
