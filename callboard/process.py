"""Who this process is, in claims, records and heartbeats."""

from __future__ import annotations

import os
import secrets
import socket

_name = ""


def worker_name() -> str:
    """This process as 'host:pid:suffix'. The suffix makes it unique for ever, as pids come again."""
    global _name
    if not _name:
        _name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return _name


def _forget() -> None:
    global _name
    _name = ""


os.register_at_fork(after_in_child=_forget)
