"""`callboard schedules`: what is shown of schedules, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from callboard.cli import reference
from callboard.cli.exits import ExitCode
from callboard.scheduler import Scheduler
from callboard.testing import Jobs
from tests.unit.cli.conftest import Callboard

Serve = Callable[[], None]


@pytest.fixture
def serve(jobs: Jobs, deliver: Any) -> Serve:
    """Lets a scheduler serve the next tick of `sweep`."""
    scheduler = Scheduler(jobs.broker)
    scheduler.serve()
    schedule = jobs.broker.actors["sweep"].options["periodic"]

    def serve() -> None:
        jobs.clock.advance_to(schedule.next_after(jobs.clock.now))
        scheduler.serve()

    return serve


def test_schedules_are_listed_in_plain_language(callboard: Callboard, serve: Serve) -> None:
    first = callboard("schedules", "list")
    assert first.code == 0
    title, line = first.out.splitlines()
    assert title.split() == ["SCHEDULE", "WHEN", "NEXT", "LAST"]
    assert line.startswith("sweep")
    assert "At 03:00 every day (UTC)" in line
    assert " 03:00 UTC" in line
    serve()
    assert "on time" in callboard("schedules", "list").out


def test_a_schedule_is_shown_with_its_next_dates_and_its_past_ticks(
    callboard: Callboard, serve: Serve, jobs: Jobs
) -> None:
    assert "None of its ticks has come yet" in callboard("schedules", "show", "sweep").out
    serve()
    serve()
    shown = callboard("schedules", "show", "sweep")
    assert shown.code == 0
    assert shown.out.count("03:00 UTC") == 5
    assert shown.out.count("on time") == 2
    assert jobs.waiting[0].id in shown.out


def test_a_schedule_for_programs_has_the_documented_fields(
    callboard: Callboard, serve: Serve, jobs: Jobs
) -> None:
    serve()
    (schedule,) = callboard("schedules", "list", "--json").json["schedules"]
    shown = callboard("schedules", "show", "sweep", "--json").json
    (tick,) = shown.pop("ticks")

    assert shown == schedule
    assert schedule["last"] == tick
    assert list(schedule) == list(reference.JSON_FIELDS["A schedule"])
    assert list(tick) == list(reference.JSON_FIELDS["A tick (`schedules show` has the newest in `ticks`)"])
    assert tick["fate"] == "on time"
    assert tick["id"] == jobs.waiting[0].id
    assert tick["due"] == tick["first"]
    assert len(schedule["next"]) == 5


def test_a_paused_schedule_skips_its_ticks_until_it_is_resumed(
    callboard: Callboard, serve: Serve, jobs: Jobs
) -> None:
    assert callboard("schedules", "pause", "sweep").out.startswith("Paused: sweep.")
    serve()
    assert not jobs.waiting
    assert "paused" in callboard("schedules", "list").out
    shown = callboard("schedules", "show", "sweep", "--json").json
    assert (shown["paused_by"], shown["last"]["fate"]) == ("cli:ada", "paused")
    assert shown["last"]["reason"] == "paused by cli:ada"

    assert callboard("schedules", "resume", "sweep", "--json").json == {"resumed": "sweep"}
    serve()
    assert len(jobs.waiting) == 1
    assert callboard("schedules", "show", "sweep", "--json").json["paused_at"] is None
    acts = [entry["action"] for entry in callboard("audit", "--json").json["entries"]]
    assert acts == ["resume schedule", "pause schedule"]


def test_a_schedule_is_run_now_even_if_it_is_paused(callboard: Callboard, serve: Serve, jobs: Jobs) -> None:
    callboard("schedules", "pause", "sweep")
    done = callboard("schedules", "run", "sweep")

    (job,) = jobs.waiting
    assert (done.code, done.out) == (0, f"{job.id}\n")
    assert job.id.startswith("sweep:now:")
    last = callboard("schedules", "show", "sweep", "--json").json["last"]
    assert (last["fate"], last["id"], last["by"]) == ("run now", job.id, "cli:ada")


def test_what_has_no_schedule_is_told_in_a_sentence(callboard: Callboard) -> None:
    nothing = callboard("schedules", "show", "swep")
    assert nothing.code == ExitCode.NOT_FOUND
    assert nothing.err == "callboard: there is no actor 'swep'; did you mean 'sweep'?\n"
    other = callboard("schedules", "pause", "deliver-letter")
    assert other.code == ExitCode.REFUSED
    assert other.err == "callboard: 'deliver-letter' has no schedule; those that have: sweep\n"
