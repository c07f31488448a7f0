"""Who this process is, in claims, records and heartbeats."""

from __future__ import annotations

import os
import secrets
import socket

_names: dict[int, str] = {}


def worker_name() -> str:
    """This process as 'host:pid:suffix'. The suffix makes it unique for ever, as pids come again."""
    pid = os.getpid()
    if pid not in _names:
        _names.clear()
        _names[pid] = f"{socket.gethostname()}:{pid}:{secrets.token_hex(3)}"
    return _names[pid]
