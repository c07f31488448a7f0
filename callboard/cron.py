"""When a job starts by itself: a cron expression in a time zone, read as a set of ticks.

A tick is a whole minute at which the schedule is due. cronsim parses the expression and walks its wall-clock
times, without a zone; this module alone turns wall-clock times into instants, by two rules:

- A schedule that names hours follows the clock on the wall. A time that the clock skips in spring fires once,
  in the first minute after the gap; a time that it shows twice in autumn fires the first time only.
- A schedule that runs in every hour of the day follows elapsed time. It has nothing to make up for in spring,
  and in autumn it goes on through the repeated hour instead of pausing for it.

cronsim has DST rules of its own, which are not used: they depend on how the expression is spelt (`*/30 2` is
lost in the gap and doubled in the fold, `0,30 2` isn't), go back in time when asked from inside the repeated
hour, and miss ticks where clocks move by half an hour.

Both restricted, day-of-month and day-of-week mean *either*, as in Debian's cron. Restricted is a field that
doesn't begin with `*`; so `0 0 */2 * mon` means odd days that are Mondays. `L`, `LW`, `5L` and `1#2` (the
last day, the last weekday, the last Friday, the second Monday of the month) are understood as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, get_args
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from periodiq import CronSpec  # type: ignore[import-untyped]  # periodiq ships no types

from callboard.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

_MINUTE = timedelta(minutes=1)
_NO_TIME = timedelta(0)
_SOME_DAY = datetime(2000, 1, 1)  # cronsim wants a start even where it only parses


#: What becomes of ticks that nobody served in time, because no scheduler ran or something was away.
Misfire = Literal["run once", "run all", "skip"]
#: Whether a tick's job is sent while the job of the tick before hasn't ended.
Overlap = Literal["allow", "skip"]


def cron(
    expression: str,
    *,
    tz: str = "UTC",
    misfire: Misfire = "run once",
    misfire_age: timedelta | None = None,
    misfire_limit: int = 100,
    overlap: Overlap = "allow",
) -> Cron:
    """The schedule of a cron actor: `@actor(periodic=cron("0 3 * * *", tz="Europe/Paris"))`.

    `expression` has the five fields minute, hour, day-of-month, month and day-of-week, or is one of the names
    `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`. `tz` is an IANA name.

    `misfire` says what `callboard scheduler` does about ticks that weren't served within a minute: `"run once"`
    sends the job of the newest and lets it stand for all, `"run all"` sends the newest `misfire_limit` of them,
    oldest first, `"skip"` none. No tick older than `misfire_age` is sent. What isn't sent is recorded as missed.

    `overlap="skip"` skips a tick while the job of the one before hasn't ended, retries included.

    Raises ScheduleError for what can't be read, what can never fire, an unknown time zone or policy.
    """
    return Cron(expression, tz, misfire, misfire_age, misfire_limit, overlap)


@dataclass(frozen=True, eq=False, repr=False)
class Cron(CronSpec):  # type: ignore[misc]  # periodiq ships no types, so its class is Any
    """An immutable schedule that periodiq can run.

    Moments passed in are aware datetimes of any zone, pendulum's included; a naive one raises ValueError.
    Ticks come back in the schedule's zone, `next_valid_date` excepted. Python compares two datetimes of the
    same zone by their wall clocks, wrongly in the repeated hour of autumn: compare and subtract in UTC.

    Two schedules are equal if they have the same ticks, whatever their policies.
    """

    expression: str
    tz: str = "UTC"
    misfire: Misfire = "run once"
    misfire_age: timedelta | None = None
    misfire_limit: int = 100
    overlap: Overlap = "allow"
    _zone: ZoneInfo = field(init=False)
    _fields: str = field(init=False)
    _in_every_hour: bool = field(init=False)
    _meaning: Hashable = field(init=False)

    def __post_init__(self) -> None:
        self._check_policies()
        expression = " ".join(_text(self.expression).split())
        fields = _five_fields(expression)
        times = _times_that_fire(expression, fields)
        self._set("expression", expression)
        self._set("_zone", _zone(self.tz))
        self._set("_fields", fields)
        self._set("_in_every_hour", len(times.hours) == 24)
        self._set("_meaning", _meaning(times))

    @classmethod
    def parse(cls, spec: str, tz: str = "UTC") -> Cron:
        """The same as `cron(spec, tz=tz)`, under the name it has in periodiq."""
        return cls(spec, tz)

    def next_after(self, moment: datetime) -> datetime:
        """The first tick strictly after `moment`."""
        instant = _instant(moment)
        wall, repeated = self._wall(instant)
        found: list[datetime] = []
        # In the first pass of a repeated hour, earlier wall-clock times are still to come a second time.
        for time in self._times(wall - repeated):
            found += [tick for tick in self._ticks_at(time) if tick > instant]
            if found and time > wall:
                return min(found).astimezone(self._zone)
        raise ScheduleError(f"'{self}' has no tick in the fifty years after {moment.isoformat()}")

    def floor(self, moment: datetime) -> datetime:
        """The newest tick at or before `moment`: the one that a scheduler which wakes then serves."""
        instant = _instant(moment)
        wall, repeated = self._wall(instant)
        found: list[datetime] = []
        # In the second pass of a repeated hour, later wall-clock times have already been there once.
        for time in self._times(wall + repeated, backwards=True):
            found += [tick for tick in self._ticks_at(time) if tick <= instant]
            if found and time <= wall:
                return max(found).astimezone(self._zone)
        raise ScheduleError(f"'{self}' has no tick in the fifty years before {moment.isoformat()}")

    def matches(self, moment: datetime) -> bool:
        """Whether the minute that `moment` lies in is a tick."""
        return _instant(moment) - self.floor(moment).astimezone(UTC) < _MINUTE

    def ticks(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Every tick later than `after` and not later than `until`, oldest first."""
        end = _instant(until)
        tick = self.next_after(after)
        while tick.astimezone(UTC) <= end:
            yield tick
            tick = self.next_after(tick)

    def explain(self) -> str:
        """The schedule in plain language, such as `At 03:00 every day (Europe/Paris)`."""
        text = CronSim(self._fields, _SOME_DAY).explain()
        # cronsim writes 21th, 22th, 23th.
        endings = {"1": "st", "2": "nd", "3": "rd"}
        text = re.sub(r"\b([2-9])([123])th\b", lambda m: m[1] + m[2] + endings[m[2]], text)
        return f"{text} ({self.tz})"

    def validate(self, date: datetime) -> bool:
        """periodiq's name for `matches`."""
        return self.matches(date)

    def next_valid_date(self, last: datetime) -> datetime:
        """periodiq's name for `next_after`; in UTC, because periodiq sorts what it gets (see the class)."""
        return self.next_after(last).astimezone(UTC)

    def astuple(self) -> tuple[Hashable, ...]:
        """What equality compares: the zone and the meaning of the fields, however they are spelt."""
        return (self.tz, self._meaning)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cron) and self.astuple() == other.astuple()

    def __hash__(self) -> int:
        return hash(self.astuple())

    def __str__(self) -> str:
        return self.expression if self.tz == "UTC" else f"{self.expression} {self.tz}"

    def __repr__(self) -> str:
        return f"cron({self.expression!r}, tz={self.tz!r})"

    def _check_policies(self) -> None:
        for name, value, known in (
            ("misfire", self.misfire, get_args(Misfire)),
            ("overlap", self.overlap, get_args(Overlap)),
        ):
            if value not in known:
                raise ScheduleError(f"{name}={value!r} is no policy; there are {', '.join(map(repr, known))}")
        if self.misfire_age is not None and not (
            isinstance(self.misfire_age, timedelta) and self.misfire_age > _NO_TIME
        ):
            raise ScheduleError(f"misfire_age={self.misfire_age!r} must be a timedelta above zero")
        if type(self.misfire_limit) is not int or not 1 <= self.misfire_limit <= 1000:
            raise ScheduleError(f"misfire_limit={self.misfire_limit!r} must be a number from 1 to 1000")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _wall(self, instant: datetime) -> tuple[datetime, timedelta]:
        """What the zone's clock shows, and by how much it is set back there if it shows that twice."""
        wall = instant.astimezone(self._zone).replace(tzinfo=None, fold=0)
        return wall, max(self._second_reading(wall) - self._first_reading(wall), _NO_TIME)

    def _times(self, wall: datetime, *, backwards: bool = False) -> Iterator[datetime]:
        """The wall-clock times that fit: those after `wall`, or backwards those before it and itself."""
        if backwards:
            # cronsim leaves out the time it starts from, to the second.
            return CronSim(self._fields, wall.replace(microsecond=0) + timedelta(seconds=1), reverse=True)
        return CronSim(self._fields, wall)

    def _ticks_at(self, time: datetime) -> tuple[datetime, ...]:
        """The instants, in UTC, at which the schedule fires for one wall-clock time."""
        first, second = self._first_reading(time), self._second_reading(time)
        if first == second:
            return (first,)
        if self._in_every_hour:
            return (first, second) if first < second else ()
        return (first,) if first < second else (self._end_of_gap(time),)

    def _end_of_gap(self, time: datetime) -> datetime:
        while self._first_reading(time) > self._second_reading(time):
            time += _MINUTE
        return self._first_reading(time)

    # PEP 495: the two readings of a wall-clock time are one instant, except where clocks change. A time shown
    # twice reads first < second. A skipped time reads first > second: fold=0 counts on from before the gap.

    def _first_reading(self, time: datetime) -> datetime:
        return time.replace(tzinfo=self._zone).astimezone(UTC)

    def _second_reading(self, time: datetime) -> datetime:
        return time.replace(tzinfo=self._zone, fold=1).astimezone(UTC)


def _instant(moment: datetime) -> datetime:
    """`moment` in UTC as a plain datetime: pendulum's subclass would answer arithmetic with its own types."""
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError(f"a schedule needs an aware datetime; {moment.isoformat()} has no time zone")
    return datetime.combine(moment.date(), moment.time(), UTC) - offset


_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    values: int
    words: tuple[str, ...] = ()

    def number(self, text: str) -> int | None:
        """What a number or a name of this field means; nothing if it is neither."""
        if text in self.words:
            return self.low + self.words.index(text)
        return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


_FIELDS = (
    _Field("minute", 0, 59, 60),
    _Field("hour", 0, 23, 24),
    _Field("day-of-month", 1, 31, 31),
    _Field("month", 1, 12, 12, _MONTHS),
    _Field("day-of-week", 0, 7, 7, _DAYS),
)


def _text(expression: object) -> str:
    if isinstance(expression, str):
        return expression
    raise ScheduleError(f"a schedule is a text such as '0 3 * * *', not {expression!r}")


def _five_fields(expression: str) -> str:
    """The fields as cronsim reads them rightly, without names such as @daily."""
    if not expression:
        raise ScheduleError("the schedule is empty; write five fields, as in '0 3 * * *' for 03:00 every day")
    if expression.startswith("@"):
        if fields := _NAMES.get(expression.lower()):
            return fields
        raise _refused(expression, f"is none of the known names: {', '.join(_NAMES)}")
    parts = expression.split()
    if len(parts) != 5:
        raise _refused(expression, _wrong_count(len(parts)))
    return " ".join(_checked(expression, kind, part) for kind, part in zip(_FIELDS, parts, strict=True))


def _wrong_count(count: int) -> str:
    number = _COUNTS[count] if count < len(_COUNTS) else str(count)
    seconds = "; there is none for seconds" if count == 6 else ""
    names = ", ".join(kind.name for kind in _FIELDS)
    return f"has {number} field{'s' if count > 1 else ''}; a schedule has five: {names}{seconds}"


def _checked(expression: str, kind: _Field, part: str) -> str:
    """One field as cronsim reads it."""
    terms = [_for_cronsim(kind, term) for term in part.lower().split(",")]
    for term in terms:
        if fault := _fault(kind, term):
            raise _refused(expression, f"has a wrong {kind.name} field '{part}': {fault}")
    checked = ",".join(terms)
    try:
        CronSim(" ".join(checked if other is kind else "*" for other in _FIELDS), _SOME_DAY)
    except (CronSimError, ValueError) as error:  # ValueError: more digits than int() takes
        forms = f"*, a number from {kind.low} to {kind.high}, a range {kind.low}-{kind.high}, a step */2"
        raise _refused(
            expression,
            f"has a {kind.name} field that can't be read, '{part}'; write {forms}, or a list of these",
        ) from error
    return checked


def _for_cronsim(kind: _Field, term: str) -> str:
    """A term between commas, respelt where cronsim would read it unlike cron or refuse it."""
    span, slash, step = term.partition("/")
    first, _, last = span.partition("-")
    start, end = kind.number(first), kind.number(last)
    if start is None or end is None:
        return term
    if kind.words == _DAYS and start > end == 0:  # a Sunday that ends a range
        return f"{first}-7{slash}{step}"
    if start == end and kind.number(step):  # cronsim takes 5-5/15 for 5/15
        return first
    return term


def _fault(kind: _Field, term: str) -> str | None:
    """Why a term can't be used, where a better reason is known than that it can't be read."""
    span, _, step = term.partition("/")
    ends = [kind.number(text) for text in span.partition("#")[0].split("-")]
    for end in ends:
        if end is not None and not kind.low <= end <= kind.high:
            return f"{end} is not between {kind.low} and {kind.high}"
    match ends:
        case [int(start), int(end)] if start > end:
            first, last = span.split("-")
            return f"{span} runs backwards; write {first}-{kind.high},{kind.low}-{last}"
    width = kind.number(step)
    # cronsim would read */90 minutes as every hour.
    if width is not None and not 1 <= width <= kind.values:
        return f"the step {width} is not between 1 and {kind.values}"
    return None


def _times_that_fire(expression: str, fields: str) -> CronSim:
    """The parsed fields. Refuses those that fit no date, such as 30 February."""
    try:
        times = CronSim(fields, _SOME_DAY)
        # The longest pause between dates that exist is 40 years (a weekday on 29 February, over 2100);
        # cronsim gives up after 50.
        if next(times, None):
            return times
    except CronSimError:
        pass
    _, _, day, month, weekday = fields.split()
    raise _refused(
        expression,
        f"would never fire: no date fits day-of-month '{day}', month '{month}' and day-of-week '{weekday}'",
    )


def _meaning(times: CronSim) -> Hashable:
    """What two spellings of the same schedule have in common; Sunday is 0."""
    weekdays = frozenset(
        (day[0] % 7, day[1]) if isinstance(day, tuple) else day % 7 for day in times.weekdays
    )
    return (
        frozenset(times.minutes),
        frozenset(times.hours),
        frozenset(times.days),
        frozenset(times.months),
        weekdays,
        times.day_and,
    )


def _refused(expression: str, reason: str) -> ScheduleError:
    return ScheduleError(f"the schedule '{expression}' {reason}")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        # A folder of the database, a malformed name and an unknown one raise differently.
        near = get_close_matches(str(name), sorted(available_timezones()), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "write an IANA name such as 'Europe/Paris'"
        raise ScheduleError(f"there is no time zone {name!r}; {hint}") from error
