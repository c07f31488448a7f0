"""Signals that come before a command listens: they are kept until it does.

A command that serves until it is told to stop takes a moment to start, and SIGTERM would kill it meanwhile, with an
exit code that says it had failed. So the kernel keeps such signals from the first line on, which holds whatever is
being imported; `callboard worker`, `dev` and `scheduler` let them through when their own handlers stand, the others
as soon as it is known that they are others.
"""

from __future__ import annotations

import signal

_KEPT = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def keep() -> None:
    """Keep them from now on. Nothing may be started meanwhile: a new process would keep them, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)


def let_through() -> None:
    """Let them through, those first that have come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT)
