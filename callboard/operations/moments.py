"""Moments and spans as people say them: '3 min ago', 'in 2 h 5 min'."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

_UNITS = (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1))
OUT_OF_RANGE = "out of range"
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d|w)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def span(seconds: float) -> str:
    """A length of time in one or two units: '80 ms', '4.2 s', '3 min 20 s', '2 days'; 'a moment' if it is none."""
    if seconds < 0.001:
        return "a moment"
    if seconds < 1:
        return f"{math.floor(seconds * 1000)} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left = round(seconds)
    for position, (unit, size) in enumerate(_UNITS):
        count, rest = divmod(left, size)
        if not count:
            continue
        text = f"{count} {'day' if unit == 'days' and count == 1 else unit}"
        if position + 1 < len(_UNITS) and count < 10:
            smaller, smaller_size = _UNITS[position + 1]
            if part := rest // smaller_size:
                text += f" {part} {smaller}"
        return text
    return "0 s"


def ago(moment: float | None, now: float) -> str:
    """How far a moment is from now, coarsely, for a table: '12 s ago', 'in 3 min', 'now', or '' for none."""
    if moment is None:
        return ""
    if date_of(moment) is None:
        return OUT_OF_RANGE
    away = moment - now
    if abs(away) < 1:
        return "now"
    text = _coarse(abs(away))
    return f"in {text}" if away > 0 else f"{text} ago"


def _coarse(seconds: float) -> str:
    left = round(seconds)
    for unit, size in _UNITS:
        # 90 s says more than 1 min, and 36 h more than 1 day.
        if left >= size * (1.5 if size > 1 else 1):
            return f"{left // size} {unit}"
    return "1 s"


def clock(moment: float) -> str:
    """A moment to the second, in UTC: '2025-11-21 20:15:02 UTC'; 'out of range' beyond the calendar."""
    date = date_of(moment)
    return date.strftime("%Y-%m-%d %H:%M:%S UTC") if date is not None else OUT_OF_RANGE


def date_of(moment: float) -> datetime | None:
    """A moment in UTC; None beyond the calendar, for a message from elsewhere may hold any number."""
    try:
        return datetime.fromtimestamp(moment, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def parse_span(text: str) -> timedelta:
    """A length of time that a person typed: '90', '90s', '10m', '1h30m', '2d'. A bare number is in seconds.

    Raises:
        ValueError: If it is none.
    """
    stripped = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return timedelta(seconds=float(stripped))
    compact = re.sub(r"\s+", "", stripped)
    if not compact or _SPAN.sub("", compact):
        raise ValueError(f"{text!r} is no length of time; write 90s, 10m, 1h30m or 2d")
    return timedelta(
        seconds=sum(float(number) * _SECONDS[unit.lower()] for number, unit in _SPAN.findall(compact))
    )


def parse_moment(text: str) -> datetime:
    """A moment that a person typed, in ISO 8601: '2025-12-24T18:00+01:00', '2025-12-24 18:00', '18:00'.

    Without a zone it is this machine's local time; a time alone is the next one.

    Raises:
        ValueError: If it is none.
    """
    now = datetime.now().astimezone()
    stripped = text.strip()
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", stripped):
        moment = datetime.fromisoformat(f"{now:%Y-%m-%d}T{stripped.zfill(5)}").astimezone()
        return moment if moment > now else (moment.replace(tzinfo=None) + timedelta(days=1)).astimezone()
    try:
        return datetime.fromisoformat(stripped).astimezone()
    except ValueError:
        raise ValueError(f"{text!r} is no moment; write 2025-12-24T18:00+01:00 or 18:00") from None
