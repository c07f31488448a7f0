from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import periodiq  # type: ignore[import-untyped]  # periodiq ships no types
import pytest
import time_machine
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from callboard.cron import Cron, cron
from callboard.errors import CallboardError, ScheduleError

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = timedelta(minutes=1)
PARIS = ZoneInfo("Europe/Paris")
pendulum: Any = periodiq.pendulum


def stamps(schedule: Cron, start: datetime, count: int) -> list[str]:
    """The next ticks as text with their offset, which tells the two passes of a repeated hour apart."""
    found: list[str] = []
    for _ in range(count):
        start = schedule.next_after(start)
        found.append(start.isoformat(timespec="minutes"))
    return found


def dates(schedule: Cron, first: date, last: date) -> list[str]:
    after = datetime(first.year, first.month, first.day, tzinfo=UTC) - MINUTE
    until = datetime(last.year, last.month, last.day, 23, 59, tzinfo=UTC)
    return [f"{tick:%a %d %b}" for tick in schedule.ticks(after, until)]


class TestDays:
    @pytest.mark.parametrize(
        "spelling", ["0 3 * * 0", "0 3 * * 7", "0 3 * * sun", "0 3 * * SUN", "0 3 * * Sun", "0\t3  * * sun "]
    )
    def test_sundays_fire_however_they_are_written(self, spelling: str) -> None:
        assert dates(cron(spelling), date(2026, 3, 1), date(2026, 3, 31)) == [
            "Sun 01 Mar",
            "Sun 08 Mar",
            "Sun 15 Mar",
            "Sun 22 Mar",
            "Sun 29 Mar",
        ]

    @pytest.mark.parametrize(
        "spelling", ["6-7", "sat-sun", "Sat-Sun", "6-sun", "6-0", "sat-sun/1", "sat,sun", "6,0"]
    )
    def test_a_weekend_may_end_with_sunday(self, spelling: str) -> None:
        assert dates(cron(f"0 3 * * {spelling}"), date(2026, 3, 2), date(2026, 3, 15)) == [
            "Sat 07 Mar",
            "Sun 08 Mar",
            "Sat 14 Mar",
            "Sun 15 Mar",
        ]

    @pytest.mark.parametrize(
        ("name", "expression", "first"),
        [
            ("@yearly", "0 0 1 1 *", "2027-01-01T00:00+00:00"),
            ("@annually", "0 0 1 1 *", "2027-01-01T00:00+00:00"),
            ("@monthly", "0 0 1 * *", "2026-08-01T00:00+00:00"),
            ("@weekly", "0 0 * * 0", "2026-07-19T00:00+00:00"),
            ("@daily", "0 0 * * *", "2026-07-16T00:00+00:00"),
            ("@midnight", "0 0 * * *", "2026-07-16T00:00+00:00"),
            ("@hourly", "0 * * * *", "2026-07-15T11:00+00:00"),
            ("@Weekly", "0 0 * * 0", "2026-07-19T00:00+00:00"),
        ],
    )
    def test_names_stand_for_their_expressions(self, name: str, expression: str, first: str) -> None:
        assert stamps(cron(name), datetime(2026, 7, 15, 10, 30, tzinfo=UTC), 1) == [first]
        assert cron(name) == cron(expression)
        assert str(cron(name)) == name

    def test_a_range_of_one_value_with_a_step_is_that_value(self) -> None:
        # cronsim alone reads 5-5/15 as 5/15, which is 5,20,35,50.
        assert cron("5-5/15 3 * * mon-mon/2") == cron("5 3 * * mon")
        assert cron("5/15 * * * *") == cron("5,20,35,50 * * * *")

    def test_a_range_from_sunday_to_sunday_is_sunday(self) -> None:
        assert cron("0 3 * * sun-sun") == cron("0 3 * * 0")

    def test_mondays_in_march_are_all_found_from_january(self) -> None:
        mondays = ["Mon 02 Mar", "Mon 09 Mar", "Mon 16 Mar", "Mon 23 Mar", "Mon 30 Mar"]
        assert dates(cron("30 10 * 3 1"), date(2026, 1, 1), date(2026, 12, 31)) == mondays
        assert dates(cron("30 10 * mar mon"), date(2026, 1, 1), date(2026, 12, 31)) == mondays

    def test_the_29th_of_february_waits_for_a_leap_year(self) -> None:
        assert stamps(cron("0 0 29 2 *"), datetime(2025, 1, 1, tzinfo=UTC), 2) == [
            "2028-02-29T00:00+00:00",
            "2032-02-29T00:00+00:00",
        ]

    def test_the_31st_skips_the_shorter_months(self) -> None:
        assert dates(cron("0 0 31 * *"), date(2026, 1, 1), date(2026, 7, 1)) == [
            "Sat 31 Jan",
            "Tue 31 Mar",
            "Sun 31 May",
        ]

    def test_the_rarest_pattern_that_exists_is_accepted(self) -> None:
        # 29 February on a Monday: 2100 is no leap year, so 40 years pass.
        assert stamps(cron("0 0 * 2 mon#5"), datetime(2045, 1, 1, tzinfo=UTC), 2) == [
            "2072-02-29T00:00+00:00",
            "2112-02-29T00:00+00:00",
        ]

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("0 0 13 * fri", ["Fri 06 Feb", "Fri 13 Feb", "Fri 20 Feb", "Fri 27 Feb"]),
            (
                "0 0 1,12 * tue",
                ["Sun 01 Feb", "Tue 03 Feb", "Tue 10 Feb", "Thu 12 Feb", "Tue 17 Feb", "Tue 24 Feb"],
            ),
            ("0 0 13 * *", ["Fri 13 Feb"]),
            ("0 0 * * fri", ["Fri 06 Feb", "Fri 13 Feb", "Fri 20 Feb", "Fri 27 Feb"]),
        ],
    )
    def test_a_restricted_day_of_month_and_day_of_week_mean_either(
        self, expression: str, expected: list[str]
    ) -> None:
        assert dates(cron(expression), date(2026, 2, 1), date(2026, 2, 28)) == expected

    def test_a_day_field_that_begins_with_a_star_narrows_the_other(self) -> None:
        assert dates(cron("0 0 */2 * mon"), date(2026, 3, 1), date(2026, 3, 31)) == [
            "Mon 09 Mar",
            "Mon 23 Mar",
        ]

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("0 0 L * *", ["Sat 31 Jan", "Sat 28 Feb", "Tue 31 Mar"]),
            ("0 0 LW * *", ["Fri 30 Jan", "Fri 27 Feb", "Tue 31 Mar"]),
            ("0 0 * * 5L", ["Fri 30 Jan", "Fri 27 Feb", "Fri 27 Mar"]),
            ("0 0 * * 0L", ["Sun 25 Jan", "Sun 22 Feb", "Sun 29 Mar"]),
            ("0 0 * * mon#1", ["Mon 05 Jan", "Mon 02 Feb", "Mon 02 Mar"]),
            ("0 0 * * 7#5", ["Sun 29 Mar"]),
        ],
    )
    def test_last_and_nth_days_are_right(self, expression: str, expected: list[str]) -> None:
        assert dates(cron(expression), date(2026, 1, 1), date(2026, 3, 31)) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("expression", "reason"),
        [
            ("61 * * * *", "minute field '61': 61 is not between 0 and 59"),
            ("* 24 * * *", "hour field '24': 24 is not between 0 and 23"),
            ("0 0 0 * *", "day-of-month field '0': 0 is not between 1 and 31"),
            ("0 0 1 13 *", "month field '13': 13 is not between 1 and 12"),
            ("0 0 * * 8", "day-of-week field '8': 8 is not between 0 and 7"),
            ("0,30,99 * * * *", "99 is not between 0 and 59"),
            (
                "0 0 3 * * *",
                "has six fields; a schedule has five: minute, hour, day-of-month, month, day-of-week",
            ),
            ("0 3 * *", "has four fields; a schedule has five"),
            ("daily", "has one field; a schedule has five"),
            ("0 0 0 0 0 0 0 0 0 0 0", "has 11 fields"),
            ("0 0 30 2 *", "would never fire: no date fits day-of-month '30', month '2'"),
            ("0 0 31 4,6,9,11 *", "would never fire"),
            ("0 0 */5 2 mon#5", "would never fire"),
            ("", "the schedule is empty; write five fields"),
            (" \n", "the schedule is empty; write five fields"),
            ("every day at 3", "has four fields"),
            ("run me once a day", "has a minute field that can't be read, 'run'"),
            ("0 3 * foo *", "has a month field that can't be read, 'foo'"),
            ("-5 * * * *", "has a minute field that can't be read, '-5'"),
            ("1,,2 * * * *", "has a minute field that can't be read, '1,,2'"),
            ("1.5 * * * *", "has a minute field that can't be read, '1.5'"),
            ("٣ * * * *", "has a minute field that can't be read"),
            ("9" * 6000 + " * * * *", "has a minute field that can't be read"),
            ("0 0 * * mon#6", "has a day-of-week field that can't be read, 'mon#6'"),
            ("0 22-2 * * *", "22-2 runs backwards; write 22-23,0-2"),
            ("0 0 * * fri-mon", "fri-mon runs backwards; write fri-7,0-mon"),
            ("59-0 * * * *", "59-0 runs backwards"),
            ("*/0 * * * *", "the step 0 is not between 1 and 60"),
            ("*/90 * * * *", "the step 90 is not between 1 and 60"),
            ("@reboot", "is none of the known names: @yearly"),
            ("@", "is none of the known names: @yearly"),
        ],
    )
    def test_what_cannot_work_is_refused_with_the_reason(self, expression: str, reason: str) -> None:
        with pytest.raises(ScheduleError) as refusal:
            cron(expression)
        assert reason in str(refusal.value)
        assert " ".join(expression.split()) in str(refusal.value)
        assert isinstance(refusal.value, CallboardError)

    @pytest.mark.parametrize("expression", ["0 22-23,0-2 * * *", "0 0 * * fri-7,0-mon"])
    def test_the_advice_for_backward_ranges_is_accepted(self, expression: str) -> None:
        assert isinstance(cron(expression), Cron)

    def test_what_is_no_text_is_refused(self) -> None:
        for value in (5, None, b"@daily"):
            with pytest.raises(ScheduleError, match="a schedule is a text"):
                cron(value)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("tz", "hint"),
        [
            ("Mars/Phobos", "write an IANA name"),
            ("Europe/Pari", "did you mean 'Europe/Paris'?"),
            ("Europe", "there is no time zone 'Europe'"),
            ("", "there is no time zone ''"),
            ("../Europe/Paris", "there is no time zone '../Europe/Paris'"),
            ("/etc/localtime", "there is no time zone '/etc/localtime'"),
            ("UTC+2", "there is no time zone 'UTC+2'"),
            ("a\0b", "there is no time zone"),
            ("x" * 5000, "there is no time zone"),
            (None, "there is no time zone None"),
        ],
    )
    def test_an_unknown_zone_is_named(self, tz: str, hint: str) -> None:
        with pytest.raises(ScheduleError) as refusal:
            cron("0 3 * * *", tz=tz)
        assert hint in str(refusal.value)

    @given(st.text(max_size=30) | st.text(alphabet="0159*/-,#LW@ monsu", max_size=30))
    @settings(max_examples=300, deadline=None)
    def test_any_text_is_either_a_schedule_that_fires_or_refused(self, text: str) -> None:
        try:
            schedule = cron(text)
        except ScheduleError:
            return
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert schedule.next_after(now) > now
        assert schedule.explain()

    def test_a_naive_moment_is_refused(self) -> None:
        schedule = cron("@daily")
        naive = datetime(2026, 1, 1)
        for ask in (schedule.next_after, schedule.floor, schedule.matches, schedule.validate):
            with pytest.raises(ValueError, match="aware"):
                ask(naive)


class TestClockChanges:
    def test_each_schedule_has_its_own_zone(self) -> None:
        start = datetime(2026, 7, 1, tzinfo=UTC)
        assert stamps(cron("0 3 * * *"), start, 1) == ["2026-07-01T03:00+00:00"]
        assert stamps(cron("0 3 * * *", tz="Europe/Paris"), start, 1) == ["2026-07-01T03:00+02:00"]
        assert stamps(cron("0 3 * * *", tz="Asia/Kolkata"), start, 1) == ["2026-07-02T03:00+05:30"]

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("30 2 * * *", ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
            # Several lost times, and one that was due at the gap's end anyway, make one tick there.
            (
                "0,30 2,3 29 3 *",
                ["2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00", "2027-03-29T02:00+02:00"],
            ),
            ("*/10 2 29 3 *", ["2026-03-29T03:00+02:00", "2027-03-29T02:00+02:00", "2027-03-29T02:10+02:00"]),
            ("30 */2 29 3 *", ["2026-03-29T00:30+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:30+02:00"]),
        ],
    )
    def test_a_time_in_the_gap_fires_once_at_its_end(self, expression: str, expected: list[str]) -> None:
        assert (
            stamps(cron(expression, tz="Europe/Paris"), datetime(2026, 3, 27, 12, tzinfo=UTC), 3) == expected
        )

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("30 2 * * *", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
            ("*/30 2 * * *", ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-26T02:00+01:00"]),
            (
                "30 1-3 25 10 *",
                ["2026-10-25T01:30+02:00", "2026-10-25T02:30+02:00", "2026-10-25T03:30+01:00"],
            ),
        ],
    )
    def test_a_repeated_time_fires_the_first_time_only(self, expression: str, expected: list[str]) -> None:
        start = datetime(2026, 10, 24, 12, tzinfo=UTC)
        assert stamps(cron(expression, tz="Europe/Paris"), start, len(expected)) == expected

    def test_a_schedule_of_every_hour_follows_elapsed_time(self) -> None:
        half_past = cron("30 * * * *", tz="Europe/Paris")
        assert stamps(half_past, datetime(2026, 3, 29, 0, tzinfo=UTC), 2) == [
            "2026-03-29T01:30+01:00",
            "2026-03-29T03:30+02:00",
        ]
        assert stamps(half_past, datetime(2026, 10, 25, 0, tzinfo=UTC), 3) == [
            "2026-10-25T02:30+02:00",
            "2026-10-25T02:30+01:00",
            "2026-10-25T03:30+01:00",
        ]
        quarters = cron("*/15 * * * *", tz="Europe/Paris")
        night = list(
            quarters.ticks(datetime(2026, 10, 25, 0, tzinfo=UTC), datetime(2026, 10, 25, 3, tzinfo=UTC))
        )
        assert [tick.astimezone(UTC).minute for tick in night] == [15, 30, 45, 0] * 3

    def test_clocks_that_move_by_half_an_hour_lose_nothing(self) -> None:
        # Lord Howe, 5 April 2026: 02:00 becomes 01:30.
        schedule = cron("45 * * * *", tz="Australia/Lord_Howe")
        assert stamps(schedule, datetime(2026, 4, 4, 14, tzinfo=UTC), 3) == [
            "2026-04-05T01:45+11:00",
            "2026-04-05T01:45+10:30",
            "2026-04-05T02:45+10:30",
        ]

    def test_a_day_that_never_was_fires_at_its_end(self) -> None:
        # Samoa went from the end of 29 December 2011 to 31 December.
        schedule = cron("0 9 30 12 *", tz="Pacific/Apia")
        assert stamps(schedule, datetime(2011, 12, 1, tzinfo=UTC), 1) == ["2011-12-31T00:00+14:00"]

    def test_a_midnight_that_never_was_fires_at_one(self) -> None:
        schedule = cron("@daily", tz="America/Sao_Paulo")
        assert stamps(schedule, datetime(2018, 11, 3, 12, tzinfo=UTC), 2) == [
            "2018-11-04T01:00-02:00",
            "2018-11-05T00:00-02:00",
        ]

    def test_asked_from_inside_the_repeated_hour_it_never_goes_back(self) -> None:
        second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC).astimezone(PARIS)
        assert second_pass.isoformat() == "2026-10-25T02:10:00+01:00"
        schedule = cron("30 2 * * *", tz="Europe/Paris")
        assert schedule.next_after(second_pass).isoformat() == "2026-10-26T02:30:00+01:00"
        assert schedule.floor(second_pass).isoformat() == "2026-10-25T02:30:00+02:00"

    def test_matches_knows_the_shifted_tick_and_the_second_pass(self) -> None:
        schedule = cron("30 2 * * *", tz="Europe/Paris")
        moments = {
            "gap's end": datetime(2026, 3, 29, 1, 0, 42, tzinfo=UTC),
            "an hour on": datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
            "before the gap": datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC),
            "first pass": datetime(2026, 10, 25, 0, 30, 59, 999999, tzinfo=UTC),
            "second pass": datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
            "the day after": datetime(2026, 10, 26, 1, 30, tzinfo=UTC),
        }
        assert [name for name, moment in moments.items() if schedule.matches(moment)] == [
            "gap's end",
            "first pass",
            "the day after",
        ]


class TestFloor:
    def test_seconds_and_fractions_fall_to_their_tick(self) -> None:
        schedule = cron("0 3 * * *", tz="Europe/Paris")
        tick = datetime(2026, 7, 1, 3, tzinfo=PARIS)
        assert schedule.floor(tick) == tick
        assert schedule.floor(tick + timedelta(seconds=59, microseconds=999_999)) == tick
        assert schedule.floor(tick + timedelta(hours=23)) == tick
        assert schedule.floor(tick - timedelta(microseconds=1)) == tick - timedelta(days=1)

    def test_it_reaches_back_over_leap_years(self) -> None:
        assert cron("0 0 29 2 *").floor(datetime(2103, 6, 1, tzinfo=UTC)) == datetime(2096, 2, 29, tzinfo=UTC)

    def test_the_zone_of_the_question_does_not_matter(self) -> None:
        schedule = cron("0 3 * * *", tz="Europe/Paris")
        for zone in (UTC, PARIS, ZoneInfo("Asia/Kolkata"), timezone(timedelta(hours=-7))):
            moment = datetime(2026, 7, 1, 1, 0, 30, tzinfo=UTC).astimezone(zone)
            assert schedule.floor(moment).isoformat() == "2026-07-01T03:00:00+02:00"
            assert schedule.matches(moment)

    def test_inside_the_repeated_hour_it_is_the_newest_of_both_passes(self) -> None:
        second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
        for expression, newest in {
            "*/30 * * * *": "2026-10-25T02:00+01:00",
            "20,40 * * * *": "2026-10-25T02:40+02:00",
            "20,40 2 * * *": "2026-10-25T02:40+02:00",
        }.items():
            tick = cron(expression, tz="Europe/Paris").floor(second_pass)
            assert tick.isoformat(timespec="minutes") == newest


class TestTicks:
    def test_the_start_is_left_out_and_the_end_is_in(self) -> None:
        at = [datetime(2026, 7, day, tzinfo=UTC) for day in (1, 2, 3)]
        assert list(cron("@daily").ticks(at[0], at[2])) == at[1:]
        assert list(cron("@daily").ticks(at[2], at[0])) == []


class TestText:
    @pytest.mark.parametrize(
        ("expression", "tz", "text"),
        [
            ("0 3 * * *", "Europe/Paris", "At 03:00 every day (Europe/Paris)"),
            ("@weekly", "UTC", "At 00:00 on Sunday (UTC)"),
            ("30 10 * 3 1", "UTC", "At 10:30 on Monday in March (UTC)"),
            ("*/15 * * * *", "UTC", "Every 15th minute of every hour (UTC)"),
            ("0 9 * * mon-fri", "UTC", "At 09:00 on Monday through Friday (UTC)"),
            ("0 0 22 * *", "UTC", "At 00:00 on the 22nd day of every month (UTC)"),
            ("0 0 11,12,31 * *", "UTC", "At 00:00 on the 11th, the 12th, and the 31st day of month (UTC)"),
        ],
    )
    def test_explain_is_plain_language_with_the_zone(self, expression: str, tz: str, text: str) -> None:
        assert cron(expression, tz=tz).explain() == text

    def test_the_zone_is_written_unless_it_is_utc(self) -> None:
        assert str(cron(" 0  3 * * * ")) == "0 3 * * *"
        assert str(cron("0 3 * * *", tz="Europe/Paris")) == "0 3 * * * Europe/Paris"
        assert repr(cron("@daily", tz="Asia/Kolkata")) == "cron('@daily', tz='Asia/Kolkata')"


class TestEquality:
    def test_spelling_does_not_matter_and_zone_does(self) -> None:
        assert cron("0 3 * * 7") == cron("0 3 * * sun")
        assert hash(cron("0 3 * * 7")) == hash(cron("0 3 * * sun"))
        assert cron("*/30 3 * jan 0L") == cron("0,30 3 * 1 7L")
        assert cron("0 3 * * *") != cron("0 4 * * *")
        assert cron("0 3 * * *") != cron("0 3 * * *", tz="Europe/Paris")
        assert cron("0 0 1-31 * mon") != cron("0 0 * * mon")

    def test_it_differs_from_other_things_without_failing(self) -> None:
        assert cron("0 3 * * *") != periodiq.cron("0 3 * * *")
        assert periodiq.cron("0 3 * * *") != cron("0 3 * * *")
        assert cron("0 3 * * *") != "0 3 * * *"

    def test_it_is_immutable_and_can_be_copied(self) -> None:
        schedule = cron("0 3 * * *", tz="Europe/Paris")
        for name in ("expression", "tz", "minute"):
            with pytest.raises(AttributeError):
                setattr(schedule, name, "*")
        with pytest.raises(AttributeError):
            schedule.replace(m=[5])
        moment = datetime(2026, 7, 1, tzinfo=UTC)
        for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
            assert twin == schedule
            assert twin.next_after(moment) == schedule.next_after(moment)


# --- against a walk over all minutes ------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """An expression with what it means, generated together: the oracle never parses."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday, 6 is Saturday
    either_day: bool

    def fit(self, wall: datetime) -> bool:
        if not (wall.minute in self.minutes and wall.hour in self.hours and wall.month in self.months):
            return False
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (day or weekday) if self.either_day else (day and weekday)


@cache
def walls(zone: str, start: datetime, minutes: int) -> list[tuple[datetime, datetime]]:
    """Every minute from `start` (UTC): the instant, and what the zone's clock shows."""
    tz = ZoneInfo(zone)
    instants = (start + number * MINUTE for number in range(minutes))
    return [(instant, instant.astimezone(tz).replace(tzinfo=None, fold=0)) for instant in instants]


def expected_ticks(fields: Fields, clock: list[tuple[datetime, datetime]]) -> Iterator[datetime]:
    """What the clock on the wall says, minute by minute, with the rules at the head of cron.py."""
    every_hour = fields.hours == frozenset(range(24))
    latest = clock[0][1] - MINUTE
    for instant, wall in clock:
        if every_hour:
            due = fields.fit(wall)
        else:
            # The wall-clock times not seen before: one, none in a repeated hour, many at a gap's end.
            due = False
            while latest < wall:
                latest += MINUTE
                due = fields.fit(latest) or due
        if due:
            yield instant


@st.composite
def parts(draw: st.DrawFn, low: int, high: int, *, busy: range | None = None) -> tuple[str, frozenset[int]]:
    """One field's text and values; numbers are drawn from `busy`, by default from all that are allowed."""
    every = range(low, high + 1)
    number = st.sampled_from(busy or every)
    step = draw(st.integers(1, len(every)))
    match draw(st.sampled_from(["star", "star with step", "list", "range", "range with step"])):
        case "star":
            return "*", frozenset(every)
        case "star with step":
            return f"*/{step}", frozenset(every[::step])
        case "list":
            values = draw(st.lists(number, min_size=1, max_size=4))
            return ",".join(map(str, values)), frozenset(values)
        case "range":
            first, last = sorted(draw(st.tuples(number, number)))
            return f"{first}-{last}", frozenset(range(first, last + 1))
        case _:
            first, last = sorted(draw(st.tuples(number, number)))
            return f"{first}-{last}/{step}", frozenset(range(first, last + 1, step))


def star(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    return st.just(("*", frozenset(range(low, high + 1))))


@st.composite
def expressions(draw: st.DrawFn) -> Fields:
    minute = draw(parts(0, 59))
    hour = draw(star(0, 23) | parts(0, 23) | parts(0, 23, busy=range(5)))  # clocks change in the early hours
    day = draw(star(1, 31) | parts(1, 31, busy=range(1, 29)))  # no 30 February
    month = draw(star(1, 12) | parts(1, 12))
    # Day-of-week has eight numbers for seven days; a step of 8 isn't allowed.
    weekday = draw(star(0, 7) | parts(0, 7).filter(lambda part: not part[0].endswith("/8")))
    return Fields(
        text=" ".join((minute[0], hour[0], day[0], month[0], weekday[0])),
        minutes=minute[1],
        hours=hour[1],
        days=day[1],
        months=month[1],
        weekdays=frozenset(number % 7 for number in weekday[1]),
        either_day=not (day[0].startswith("*") or weekday[0].startswith("*")),
    )


CLOCK_CHANGES = [
    ("Europe/Paris", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/Paris", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, tzinfo=UTC)),  # back over midnight, into the day before
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),  # no midnight
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # no 30 December
    ("Antarctica/Troll", datetime(2025, 10, 26, 1, tzinfo=UTC)),  # two hours back
]
WINDOW = timedelta(days=4)
QUIET_WEEKS = [
    (zone, datetime(year, month, day, tzinfo=UTC))
    for zone, year, month, day in [
        ("Asia/Kolkata", 2026, 3, 29),
        ("Asia/Kolkata", 2024, 2, 27),
        ("UTC", 2023, 12, 30),
        ("America/New_York", 2028, 2, 28),
        ("Europe/Paris", 2025, 12, 31),
        ("Australia/Lord_Howe", 2027, 6, 30),
    ]
]


@given(
    fields=expressions(),
    week=st.sampled_from(CLOCK_CHANGES + QUIET_WEEKS),
    asked=st.lists(st.floats(0.3, 0.7), min_size=1, max_size=5),
    near=st.lists(st.integers(-150, 150), min_size=1, max_size=5),
    second=st.sampled_from([0.0, 0.5, 30.0, 59.999999]),
)
# Shrinking a failure takes minutes here; the first one found tells enough.
@settings(max_examples=120, deadline=None, phases=set(Phase) - {Phase.shrink, Phase.explain})
def test_every_answer_agrees_with_a_walk_over_all_minutes(
    fields: Fields, week: tuple[str, datetime], asked: list[float], near: list[int], second: float
) -> None:
    zone, middle = week
    clock = walls(zone, middle - WINDOW / 2, int(WINDOW / MINUTE))
    start, end = clock[0][0], clock[-1][0]
    expected = list(expected_ticks(fields, clock))
    schedule = cron(fields.text, tz=zone)

    found = list(schedule.ticks(start - MINUTE, end))
    assert [tick.astimezone(UTC) for tick in found] == expected
    assert all(tick.tzinfo == ZoneInfo(zone) for tick in found)

    moments = [start + WINDOW * part for part in asked] + [middle + number * MINUTE for number in near]
    for minute in (moment.replace(second=0, microsecond=0) for moment in moments):
        moment = (minute + timedelta(seconds=second)).astimezone(ZoneInfo(zone))
        assert schedule.matches(moment) == (minute in expected)
        later = [tick for tick in expected if tick > minute]
        if later:
            assert schedule.next_after(moment).astimezone(UTC) == later[0]
        else:
            assert schedule.next_after(moment).astimezone(UTC) > end
        earlier = [tick for tick in expected if tick <= minute]
        if earlier:
            assert schedule.floor(moment).astimezone(UTC) == earlier[-1]
        else:
            assert schedule.floor(moment).astimezone(UTC) < start


ALWAYS = Fields(
    text="* * * * *",
    minutes=frozenset(range(60)),
    hours=frozenset(range(24)),
    days=frozenset(range(1, 32)),
    months=frozenset(range(1, 13)),
    weekdays=frozenset(range(7)),
    either_day=False,
)
NIGHTLY = replace(ALWAYS, text="30 2 * * *", minutes=frozenset({30}), hours=frozenset({2}))
YEARLONG = [
    NIGHTLY,
    replace(ALWAYS, text="*/20 0-3 * * *", minutes=frozenset({0, 20, 40}), hours=frozenset({0, 1, 2, 3})),
    replace(ALWAYS, text="45 * * * *", minutes=frozenset({45})),
    replace(NIGHTLY, text="30 2 * 3 1", months=frozenset({3}), weekdays=frozenset({1})),
    replace(
        NIGHTLY, text="30 2 13,31 * fri", days=frozenset({13, 31}), weekdays=frozenset({5}), either_day=True
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("year", [2007, 2019, 2026])
@pytest.mark.parametrize(
    "zone", ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo"]
)
def test_whole_years_of_ticks_agree_with_a_walk_over_all_minutes(zone: str, year: int) -> None:
    start = datetime(year, 1, 1, tzinfo=UTC)
    clock = walls(zone, start, 366 * 24 * 60)
    for fields in YEARLONG:
        found = cron(fields.text, tz=zone).ticks(start - MINUTE, clock[-1][0])
        assert [tick.astimezone(UTC) for tick in found] == list(expected_ticks(fields, clock))
    walls.cache_clear()


# --- under periodiq -----------------------------------------------------------------------------


class RecordingActor:
    def __init__(self, name: str, schedule: Cron) -> None:
        self.name = name
        self.options = {"periodic": schedule}
        self.sent: list[str] = []

    def send_with_options(self, *, scheduled_at: str) -> None:
        tick = self.options["periodic"].floor(datetime.fromisoformat(scheduled_at))
        self.sent.append(tick.isoformat(timespec="minutes"))


class ClockedScheduler(periodiq.Scheduler):  # type: ignore[misc]  # periodiq ships no types
    """periodiq's own scheduler on a clock that its sleeps and alarms move."""

    def __init__(self, actors: list[RecordingActor], traveller: time_machine.Traveller) -> None:
        super().__init__(actors)
        self.traveller = traveller

    def run_until(self, end: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(periodiq, "sleep", self.wait)
        monkeypatch.setattr(periodiq, "alarm", self.wait)
        monkeypatch.setattr(periodiq, "signal", lambda *_: None)
        while datetime.now(UTC) < end:
            self.schedule()

    def wait(self, seconds: float) -> None:
        self.traveller.shift(timedelta(seconds=seconds))


@pytest.mark.parametrize("local", ["UTC", "Europe/Paris", "Asia/Kolkata"])
@pytest.mark.parametrize(
    ("start", "nightly", "half_hourly"),
    [
        (
            datetime(2026, 3, 28, 23, 50, tzinfo=UTC),
            ["2026-03-29T03:00+02:00"],
            [
                "2026-03-29T01:00+01:00",
                "2026-03-29T01:30+01:00",
                "2026-03-29T03:00+02:00",
                "2026-03-29T03:30+02:00",
                "2026-03-29T04:00+02:00",
            ],
        ),
        (
            datetime(2026, 10, 24, 23, 50, tzinfo=UTC),
            ["2026-10-25T02:30+02:00"],
            [
                "2026-10-25T02:00+02:00",
                "2026-10-25T02:30+02:00",
                "2026-10-25T02:00+01:00",
                "2026-10-25T02:30+01:00",
                "2026-10-25T03:00+01:00",
            ],
        ),
    ],
)
def test_periodiq_runs_it_through_the_nights_of_clock_changes(
    monkeypatch: pytest.MonkeyPatch, local: str, start: datetime, nightly: list[str], half_hourly: list[str]
) -> None:
    actors = [
        RecordingActor("nightly", cron("30 2 * * *", tz="Europe/Paris")),
        RecordingActor("half-hourly", cron("*/30 * * * *", tz="Europe/Paris")),
        RecordingActor("sundays in Kolkata", cron("40 5 * * sun", tz="Asia/Kolkata")),
    ]
    with (
        pendulum.test_local_timezone(pendulum.timezone(local)),
        time_machine.travel(start, tick=False) as clock,
    ):
        ClockedScheduler(actors, clock).run_until(start + timedelta(hours=2, minutes=11), monkeypatch)
    kolkata = (start + timedelta(minutes=20)).astimezone(ZoneInfo("Asia/Kolkata"))
    assert actors[0].sent == nightly
    assert actors[1].sent == half_hourly
    assert actors[2].sent == [kolkata.isoformat(timespec="minutes")]


def test_pendulum_and_plain_datetimes_get_the_same_answers() -> None:
    schedule = cron("30 2 * * *", tz="Europe/Paris")
    plain = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    moment = pendulum.instance(plain).in_timezone("America/New_York")
    assert schedule.validate(moment)
    assert schedule.validate(plain)
    assert schedule.next_valid_date(moment) == schedule.next_valid_date(plain)
    assert (schedule.next_valid_date(moment) - moment).total_seconds() == 25 * 3600
    assert type(schedule.next_after(moment)) is datetime


def test_next_dates_sort_by_instant_inside_the_repeated_hour() -> None:
    # Datetimes of one zone compare by wall clock: the second 02:20 would come before the first 02:40.
    now = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    first = cron("40 2 * * *", tz="Europe/Paris").next_valid_date(now)
    second = cron("20 * * * *", tz="Europe/Paris").next_valid_date(now)
    assert sorted([second, first]) == [first, second]


@pytest.mark.parametrize(
    ("policies", "reason"),
    [
        (
            {"misfire": "sometimes"},
            "misfire='sometimes' is no policy; there are 'run once', 'run all', 'skip'",
        ),
        ({"overlap": True}, "overlap=True is no policy; there are 'allow', 'skip'"),
        ({"misfire_age": 60}, "misfire_age=60 must be a timedelta above zero"),
        ({"misfire_limit": 0}, "misfire_limit=0 must be a number from 1 to 1000"),
    ],
)
def test_a_policy_that_is_none_is_refused(policies: dict[str, Any], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        cron("@daily", **policies)
