"""Exit codes, and the sentence that each failure ends with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn


class ExitCode(IntEnum):
    """What a command's end means. Stable: programs rely on it."""

    OK = 0
    NOT_FOUND = 1
    USAGE = 2
    AWAY = 3
    REFUSED = 4
    MISCONFIGURED = 5
    UNSUCCESSFUL = 6
    FATE_UNKNOWN = 7
    BUG = 70
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """In a few words."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.NOT_FOUND: "no such job, actor or queue, or nothing matched",
    ExitCode.USAGE: "the command was misspelt",
    ExitCode.AWAY: "the broker or the store can't be reached or written; nothing was queued",
    ExitCode.REFUSED: "refused: the payload doesn't fit, or the job's state doesn't allow it",
    ExitCode.MISCONFIGURED: "a setting is wrong, or the application can't be loaded",
    ExitCode.UNSUCCESSFUL: "the watched job ended otherwise than succeeded, or not in time",
    ExitCode.FATE_UNKNOWN: "the job may or may not be queued",
    ExitCode.BUG: "an error that nobody foresaw",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command to the process's end. A failure is one sentence on stderr, and a code that tells its kind."""
    try:
        command()
        code: int = ExitCode.OK
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: whatever it is, it is told in a sentence
        code = _tell(error)
    code = _flush(code)
    sys.exit(int(code))


def _flush(code: int) -> int:
    """Write out what is left. A reader that has gone (`| head`) is no failure of ours."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _tell(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    if os.environ.get("CALLBOARD_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    from callboard.cli.output import printable  # costs time, and few commands fail

    code, sentence = explain(error)
    sys.stderr.write(f"callboard: {printable(sentence, keep_lines=True)}\n")
    return code


def explain(error: Exception) -> tuple[ExitCode, str]:
    """The code for an error, and its sentence."""
    import sqlite3

    from callboard import errors

    text = str(error).strip()
    kinds: list[tuple[type[Exception] | tuple[type[Exception], ...], ExitCode]] = [
        ((errors.JobNotFound, errors.UnknownQueue, errors.UnknownActor), ExitCode.NOT_FOUND),
        ((errors.FateUnknown, errors.PartlySent), ExitCode.FATE_UNKNOWN),
        ((errors.InvalidPayload, errors.NotPossible), ExitCode.REFUSED),
        (errors.InvalidQuery, ExitCode.USAGE),
        ((errors.NotQueued, errors.BrokerUnavailable, errors.StoreUnavailable), ExitCode.AWAY),
        (errors.CallboardError, ExitCode.MISCONFIGURED),
    ]
    for kind, code in kinds:
        if isinstance(error, kind):
            return code, text or type(error).__name__
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return ExitCode.AWAY, f"{error.strerror or text}{where}"
    if isinstance(error, sqlite3.Error):
        return ExitCode.AWAY, f"SQLite says: {text}"
    return (
        ExitCode.BUG,
        f"unforeseen {type(error).__name__}: {text or 'no message'}; CALLBOARD_DEBUG=1 shows where",
    )
