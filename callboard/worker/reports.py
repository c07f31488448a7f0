"""What the processes of a worker tell their supervisor: short messages over a socket that all of them share."""

from __future__ import annotations

import os
import socket
from typing import Literal

import msgspec

_MOST_BYTES = 1 << 16
_MOST_TEXT = 12_000


class Report(msgspec.Struct, omit_defaults=True):
    """One message.

    `loaded` and `refused` come from the process that loads the application, `begun`, `ready`, `failed` and `stopping`
    from those that run jobs.
    """

    kind: Literal["loaded", "refused", "begun", "ready", "failed", "stopping"]
    pid: int
    block: int = -1  # which of the supervisor's blocks of slots the process has
    queues: list[str] = []
    hazard: str = ""  # why the process that has loaded the application mustn't be forked
    leases: bool = False  # whether a process has to keep the leases of jobs
    error: str = ""  # the name of the error's class
    text: str = ""


class Reports:
    """Both ends of the socket. Made by the supervisor, inherited by the others."""

    def __init__(self) -> None:
        self._receiving, self._sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._receiving, self._sending):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOST_BYTES)
        self._receiving.setblocking(False)

    def fileno(self) -> int:
        """Readable when there is something to receive."""
        return self._receiving.fileno()

    def send(self, report: Report) -> None:
        """Tell the supervisor. If that is gone, nobody needs to know."""
        report.text = report.text[-_MOST_TEXT:]
        try:
            self._sending.send(msgspec.json.encode(report))
        except OSError:
            return

    def receive(self) -> list[Report]:
        """What has come."""
        reports = []
        while True:
            try:
                reports.append(msgspec.json.decode(self._receiving.recv(_MOST_BYTES), type=Report))
            except BlockingIOError:
                return reports

    def only_send(self) -> None:
        """Close the end that is the supervisor's."""
        self._receiving.close()

    def close(self) -> None:
        """Close both ends."""
        self._receiving.close()
        self._sending.close()


def report_of(error: BaseException, kind: Literal["refused", "failed"], block: int = -1) -> Report:
    """A report that carries an error."""
    return Report(kind, os.getpid(), block=block, error=type(error).__name__, text=str(error))
