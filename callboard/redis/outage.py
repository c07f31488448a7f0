"""Why Redis can't be used, in one sentence that says what to do."""

from __future__ import annotations

import redis.exceptions

from callboard.errors import BrokerUnavailable
from callboard.redis.address import Address

#: Answers that pass by themselves: it starts, fails over, or another script is running.
_PASSING = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "UNKILLABLE",
    "NOREPLICAS",
)
_CREDENTIALS = ("WRONGPASS", "NOAUTH")


class Unreachable(BrokerUnavailable):
    """There is no connection, or it broke. What was being asked may have been done, if `sent`."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Refused(BrokerUnavailable):
    """Redis answered that it won't, and nothing was done. `passing` says whether it soon may."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def unreachable(error: Exception, address: Address, *, sent: bool) -> Unreachable:
    """What to raise when the connection fails."""
    return Unreachable(f"Redis at {address} is away: {_reason(error)}", sent=sent)


def refused(error: redis.exceptions.RedisError, address: Address) -> Refused:
    """What to raise for an answer that is an error."""
    # redis-py takes the code off some answers, and leaves it at others.
    text = str(error)
    code = _CODES.get(type(error), text.partition(" ")[0])
    if code in _PASSING:
        return Refused(f"Redis at {address} can't do it just now: {text}", passing=True)
    if code in _CREDENTIALS or isinstance(error, redis.exceptions.AuthenticationError):
        who = f"the user '{address.user}'" if address.user else "us"
        return Refused(f"Redis at {address} refuses {who}: check the user and password in the URL")
    if code == "NOPERM":
        return Refused(
            f"Redis at {address} doesn't permit this to '{address.user or 'default'}' ({text}): grant the user "
            "the keys and channels 'callboard:*' and the commands of scripts, sets, hashes, strings and pub/sub"
        )
    if code == "OOM":
        return Refused(
            f"Redis at {address} has used all the memory that 'maxmemory' allows: "
            "give it more, or keep less in it: fewer jobs that wait, or records and results for a shorter time"
        )
    if code == "MISCONF":
        return Refused(
            f"Redis at {address} can't save its data and so takes no more: see its log, and its disk"
        )
    return Refused(f"Redis at {address} refuses: {text}")


_CODES: dict[type[Exception], str] = {
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
}


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, redis.exceptions.TimeoutError):
        return "it doesn't answer"
    if "Connection refused" in text:
        return "connection refused; is it running?"
    if "Connection closed by server" in text or "reset by peer" in text:
        return "it closed the connection"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate isn't trusted: {text.rpartition('CERTIFICATE_VERIFY_FAILED] ')[2]}"
    if "Name or service not known" in text or "name resolution" in text:
        return "the host's name can't be resolved"
    return text or type(error).__name__
