"""Moments and spans in words, and as they are typed."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from callboard.operations.moments import ago, clock, parse_moment, parse_span, span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "a moment"),
        (0, "a moment"),
        (0.0804, "80 ms"),
        (0.9999, "999 ms"),
        (1, "1 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (660, "11 min"),
        (7500, "2 h 5 min"),
        (86_400, "1 day"),
        (90_000, "1 day 1 h"),
        (40 * 86_400, "40 days"),
    ],
)
def test_a_span_has_one_or_two_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("away", "words"),
    [
        (0, "now"),
        (-12, "12 s ago"),
        (-89, "89 s ago"),
        (-200, "3 min ago"),
        (7200, "in 2 h"),
        (-3 * 86_400, "3 days ago"),
    ],
)
def test_a_table_shows_how_far_a_moment_is(away: float, words: str) -> None:
    assert ago(1_000_000 + away, 1_000_000) == words


def test_no_moment_is_nothing_in_a_table() -> None:
    assert ago(None, 0) == ""


@pytest.mark.parametrize("moment", [1e15, -1e15, 1e300, math.inf, math.nan])
def test_a_moment_beyond_the_calendar_is_told(moment: float) -> None:
    assert clock(moment) == "out of range"
    assert ago(moment, 0.0) == "out of range"


def test_a_clock_shows_utc() -> None:
    assert clock(1_763_756_102.9) == "2025-11-21 20:15:02 UTC"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("90", timedelta(seconds=90)),
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("10m", timedelta(minutes=10)),
        ("10 min", timedelta(minutes=10)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("1w", timedelta(weeks=1)),
        ("250ms", timedelta(milliseconds=250)),
    ],
)
def test_a_length_of_time_can_be_typed(text: str, meaning: timedelta) -> None:
    assert parse_span(text) == meaning


@pytest.mark.parametrize("text", ["", "soon", "10x", "-5m", "1h of rest"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s, 10m, 1h30m or 2d"):
        parse_span(text)


def test_a_moment_with_a_zone_is_that_moment() -> None:
    assert parse_moment("2025-12-24T18:00+01:00") == datetime(2025, 12, 24, 17, tzinfo=UTC)


def test_a_moment_without_a_zone_is_local() -> None:
    assert parse_moment("2025-12-24 18:00") == datetime(2025, 12, 24, 18).astimezone()


def test_a_time_alone_is_the_next_one() -> None:
    now = datetime.now().astimezone()
    for text in ("0:05", "12:00", "23:59:30"):
        found = parse_moment(text)
        assert now < found <= now + timedelta(hours=25)  # a day may have 25 hours
        assert found.strftime("%H:%M") == text.zfill(5)[:5]


def test_what_is_no_moment_is_refused() -> None:
    for text in ("tomorrow", "25:00", "2025-13-01"):
        with pytest.raises(ValueError):
            parse_moment(text)
