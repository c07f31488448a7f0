"""What each command prints, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callboard import Priority, State
from callboard.brokers.driver import Outgoing, QueueCounts
from callboard.cli.exits import ExitCode
from callboard.cli.workers import _reserved
from callboard.errors import BrokerUnavailable, StoreUnavailable
from callboard.store.base import Change, Heartbeat
from callboard.testing import Jobs
from tests.unit.cli.conftest import Callboard

Die = Callable[..., str]


@pytest.fixture
def die(jobs: Jobs, deliver: Any, broken: set[str]) -> Die:
    """Makes a dead letter; returns its id."""

    def die(to: str = "nowhere", **options: Any) -> str:
        broken.add(to)
        sent = deliver.using(**options).send(to=to, password="geheim")
        jobs.drain(fail=False)
        return str(sent.message_id)

    return die


# -- enqueue ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deliver-letter", "deliver_letter"])
def test_enqueue_prints_the_id_of_the_job(callboard: Callboard, jobs: Jobs, name: str) -> None:
    done = callboard("enqueue", name, "--payload", '{"to": "elm street"}', "--tag", "a", "--tag", "b")

    (job,) = jobs.waiting
    assert (done.code, done.out) == (0, f"{job.id}\n")
    assert (job.kwargs, job.tags, job.queue) == ({"to": "elm street"}, ("a", "b"), "post.high")


def test_enqueue_takes_a_file_and_standard_input(
    callboard: Callboard, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"to": "elm street"}')
    assert callboard("enqueue", "deliver-letter", "-p", f"@{file}").code == 0
    with file.open() as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", stream)
        assert callboard("enqueue", "deliver-letter", "-p", "@-").code == 0
    assert [job.kwargs for job in jobs.waiting] == [{"to": "elm street"}] * 2


def test_enqueue_takes_priority_delay_deadline_and_id(callboard: Callboard, jobs: Jobs) -> None:
    done = callboard(
        *("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--priority", "low", "--delay", "1h30m"),
        *("--expires", "2d", "--id", "letter-1", "--json"),
    )

    assert done.json == {
        "id": "letter-1",
        "actor": "deliver-letter",
        "queue": "post.low",
        "queued": True,
    }
    (job,) = jobs.waiting
    assert job.due is not None
    assert abs((job.due - jobs.clock.now) - timedelta(minutes=90)) < timedelta(seconds=5)
    assert jobs.record("letter-1").expires_at is not None


def test_a_unique_job_is_queued_once(callboard: Callboard, jobs: Jobs) -> None:
    first = callboard("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--unique", "k")
    second = callboard("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--unique", "k")

    assert (second.code, second.out) == (0, first.out)
    assert len(jobs.waiting) == 1


def test_what_is_not_queued_for_its_key_is_told_with_the_job_that_has_it(
    callboard: Callboard, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enqueue(message: Any, *, delay: int | None = None) -> Any:
        extras = {**message.options["callboard"], "duplicate_of": "first"}
        return message.copy(message_id="first", options={"callboard": extras})

    monkeypatch.setattr(jobs.broker, "enqueue", enqueue)
    arguments = ("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--unique", "k")

    done = callboard(*arguments)
    assert (done.code, done.out) == (0, "first\n")
    assert done.err == "not queued: job first has the key 'k' and hasn't ended\n"
    assert callboard(*arguments, "--json").json == {
        "id": "first",
        "actor": "deliver-letter",
        "queue": "post.high",
        "queued": False,
    }


def test_a_key_may_last_for_a_time(callboard: Callboard, jobs: Jobs) -> None:
    arguments = ("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--unique", "k", "--unique-for", "1h")
    first = callboard(*arguments)
    jobs.drain()

    again = callboard(*arguments)
    assert (again.code, again.out) == (0, first.out)
    assert again.err == f"not queued: job {first.out.strip()} has the key 'k', which lasts for a time\n"
    jobs.clock.advance(timedelta(minutes=61))
    assert callboard(*arguments, "--json").json["queued"]


def test_a_key_may_last_until_the_job_starts(callboard: Callboard, jobs: Jobs) -> None:
    callboard(
        *("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--unique", "k", "--unique-until", "started")
    )

    (stored,) = jobs.broker.driver.peek("post.high")
    assert json.loads(stored.body)["options"]["callboard"]["unique_until"] == "started"


def test_a_job_for_an_actor_elsewhere_says_its_version(callboard: Callboard, jobs: Jobs) -> None:
    callboard("enqueue", "paint-wall", "--category", "house", "--payload-version", "3")

    (stored,) = jobs.broker.driver.peek("house.medium")
    assert json.loads(stored.body)["options"]["callboard"]["payload_version"] == 3


def test_a_job_is_not_queued_under_the_id_of_another(callboard: Callboard, jobs: Jobs) -> None:
    arguments = ("enqueue", "deliver-letter", "-p", '{"to": "x"}', "--id", "letter-1")
    assert callboard(*arguments).code == 0
    jobs.drain()
    story = jobs.record("letter-1")

    done = callboard(*arguments)

    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert "there is a job letter-1 already, which is succeeded" in done.err
    assert jobs.waiting == []
    assert jobs.record("letter-1") == story


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nobody"], ExitCode.NOT_FOUND, "there is no actor 'nobody'"),
        (["deliver-leter"], ExitCode.NOT_FOUND, "did you mean 'deliver-letter'?"),
        (["deliver-letter"], ExitCode.REFUSED, "'deliver-letter' was not sent: 'to' is missing"),
        (["deliver-letter", "-p", "{to: x}"], ExitCode.USAGE, "this is no JSON"),
        (["deliver-letter", "-p", "[1]"], ExitCode.USAGE, "the arguments are a JSON object"),
        (["deliver-letter", "-p", "@/no/such.json"], ExitCode.USAGE, "can't read /no/such.json"),
        (["deliver-letter", "-d", "soon"], ExitCode.USAGE, "'soon' is no length of time"),
        (["deliver-letter", "--at", "soon"], ExitCode.USAGE, "'soon' is no moment"),
        (["deliver-letter", "--priority", "urgent"], ExitCode.USAGE, "'--priority'"),
        (["deliver-letter", "-d", "1h", "--at", "18:00"], ExitCode.USAGE, "give one of delay and at"),
        (["deliver-letter", "-p", '{"to":"x"}', "-d", "301d"], ExitCode.USAGE, "300 days at most"),
        (
            ["deliver-letter", "--unique-for", "1h"],
            ExitCode.USAGE,
            "how long a unique= key lasts, and there is none",
        ),
        (["deliver-letter", "--unique", "k", "--unique-for", "long"], ExitCode.USAGE, "'long' is no length"),
        (["deliver-letter", "--unique", "k", "--unique-until", "dead"], ExitCode.USAGE, "'--unique-until'"),
        (["deliver-letter", "--payload-version", "0"], ExitCode.USAGE, "'--payload-version'"),
        (["deliver-letter", "-p", '{"to":"x"}', "--id", "a b"], ExitCode.REFUSED, "can't be a job's id"),
    ],
)
def test_what_cannot_be_queued_is_told_in_a_sentence(
    callboard: Callboard, jobs: Jobs, arguments: list[str], code: ExitCode, sentence: str
) -> None:
    done = callboard("enqueue", *arguments)

    assert (done.code, done.out) == (code, "")
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert jobs.waiting == []


def test_a_broker_that_is_away_has_an_exit_code_of_its_own(callboard: Callboard, jobs: Jobs) -> None:
    driver: Any = jobs.broker.driver
    driver.fail_puts = "RabbitMQ is away"

    done = callboard("enqueue", "deliver-letter", "-p", '{"to": "x"}')

    assert done.code == ExitCode.AWAY
    assert done.err.startswith("callboard: not queued: RabbitMQ is away")
    assert done.err.count("\n") == 1


# -- jobs ------------------------------------------------------------------------------------------------


def test_jobs_are_listed_for_people(callboard: Callboard, die: Die, deliver: Any, jobs: Jobs) -> None:
    dead = die()
    waiting = deliver.send(to="x").message_id

    lines = callboard("jobs", "list").out.splitlines()

    assert lines[0].split() == ["STATE", "ACTOR", "ID", "QUEUED", "TRIES", "QUEUE", "NOTE"]
    assert lines[1].split()[:3] == ["queued", "deliver-letter", waiting]
    assert lines[2].split()[:3] == ["dead", "deliver-letter", dead]
    assert lines[2].endswith("permanent: no such street: nowhere")
    assert not any(line != line.rstrip() for line in lines)


def test_jobs_are_listed_for_programs_page_by_page(callboard: Callboard, deliver: Any) -> None:
    ids = [deliver.using(tags=["t"]).send(to="x").message_id for _ in range(3)]

    first = callboard("jobs", "list", "--json", "--limit", "2", "--tag", "t").json
    second = callboard("jobs", "list", "--json", "--limit", "2", "--tag", "t", "--after", first["next"]).json

    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None
    assert first["jobs"][0]["payload"] == {"to": "x", "password": ""} or first["jobs"][0]["payload"] == {
        "to": "x"
    }
    assert first["jobs"][0]["enqueued_at"].endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--state", "dead"], 1),
        (["--actor", "deliver_letter"], 2),
        (["--queue", "post.low"], 0),
        (["--category", "post"], 2),
        (["--text", "nowhere"], 1),
        (["--since", "1h"], 2),
        (["--until", "1h"], 0),
        (["--since", "2020-01-01T00:00"], 2),
    ],
)
def test_jobs_are_filtered(
    callboard: Callboard, die: Die, deliver: Any, arguments: list[str], found: int
) -> None:
    die()
    deliver.send(to="x")

    assert len(callboard("jobs", "list", "--json", *arguments).json["jobs"]) == found


def test_a_wrong_page_is_a_misspelt_command(callboard: Callboard) -> None:
    assert callboard("jobs", "list", "--after", "nonsense").code == ExitCode.USAGE


def test_a_job_is_shown_with_its_story(callboard: Callboard, die: Die) -> None:
    job_id = die(tags=["slow"])

    done = callboard("jobs", "show", job_id[-10:], "--traceback")

    assert done.out.splitlines()[0].split() == ["deliver-letter", job_id, "dead"]
    assert "Dead for a moment: permanent: no such street: nowhere" in done.out
    assert "slow" in done.out
    assert "Traceback (most recent call last)" in done.out
    assert "geheim" not in done.out
    document = callboard("jobs", "show", job_id, "--json").json
    assert document["story"][-1]["state"] == "dead"
    assert document["payload"]["password"] == "**********"
    assert document["why"].startswith("Dead for ")


def test_the_story_of_a_job_that_was_mended_begins_and_ends(
    callboard: Callboard, die: Die, jobs: Jobs, broken: set[str]
) -> None:
    job_id = die()
    broken.clear()
    callboard("jobs", "retry", job_id)
    jobs.drain()

    done = callboard("jobs", "show", job_id)

    lines = done.out.splitlines()
    story = lines[next(n for n, line in enumerate(lines) if line.startswith("WHEN")) + 1 :]
    states = [re.split(r"\s{2,}", line)[1] for line in story]
    assert (states[0], states[-1]) == (State.QUEUED, State.SUCCEEDED)
    assert State.DEAD in states
    assert "after running for" in story[-1]
    facts = {line.split("  ")[0].strip() for line in lines}
    assert not facts & {"error", "last error", "cause"}
    assert "traceback" not in done.err


def test_a_cancellation_that_was_asked_for_shows(callboard: Callboard, deliver: Any) -> None:
    job_id = deliver.send(to="x").message_id

    assert callboard("jobs", "cancel", job_id).out == f"Asked to cancel {job_id}: it will not start.\n"
    assert "cancelled, ends when a worker gets to it" in callboard("jobs", "list").out
    again = callboard("jobs", "cancel", job_id)
    assert (again.code, again.out.partition(" already, ")[0]) == (
        ExitCode.OK,
        f"The cancellation of {job_id} was asked for",
    )


def test_a_cancellation_that_comes_with_the_end_says_so(
    callboard: Callboard, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id
    store = jobs.broker.store
    assert store is not None
    order = jobs.record(job_id).order
    store.write([Change(job_id=job_id, order=order + 1, state=State.RUNNING, at=jobs.clock())])
    cancel = store.cancel

    def cancel_late(job_id: str, *, at: float) -> None:
        cancel(job_id, at=at)
        store.write([Change(job_id=job_id, order=order + 9, state=State.SUCCEEDED, at=at, finished_at=at)])

    monkeypatch.setattr(store, "cancel", cancel_late)
    done = callboard("jobs", "cancel", job_id, "--wait", "30")

    assert done.code == ExitCode.REFUSED
    assert f"Too late, nothing has changed: {job_id} was succeeded by then." in done.out
    assert not store.is_cancelled(job_id)
    story = [event.text for event in jobs.record(job_id).events]
    assert "its cancellation came too late: it was succeeded by then" in story


def test_too_little_of_an_id_is_told(callboard: Callboard) -> None:
    done = callboard("jobs", "show", "01a2")

    assert done.code == ExitCode.NOT_FOUND
    assert "give six characters or more of an id, from its start or its end" in done.err


def test_an_unknown_job_is_not_found(callboard: Callboard) -> None:
    for arguments in (
        ["jobs", "show"],
        ["jobs", "cancel"],
        ["jobs", "retry"],
        ["jobs", "watch"],
        ["dead", "show"],
    ):
        done = callboard(*arguments, "nobody-knows")
        assert (done.code, done.out) == (ExitCode.NOT_FOUND, "")
        assert done.err.startswith("callboard: ")


def test_cancel_and_retry_act_on_several(callboard: Callboard, die: Die, deliver: Any, jobs: Jobs) -> None:
    ids = [deliver.send(to="x").message_id for _ in range(2)]
    assert callboard("jobs", "cancel", *ids, "--json").json == {"cancelled": ids, "too_late": []}
    jobs.drain()
    assert jobs.state(ids[0]) is State.CANCELLED

    dead = [die(), die()]
    assert callboard("jobs", "retry", *dead, "--json").json == {"replayed": dead}
    assert len(jobs.waiting) == 2
    assert callboard("jobs", "retry", ids[0]).code == ExitCode.REFUSED


def test_a_job_that_has_ended_keeps_no_other_from_being_cancelled_or_run_again(
    callboard: Callboard, die: Die, deliver: Any, jobs: Jobs
) -> None:
    ended = deliver.send(to="x").message_id
    jobs.drain()
    dead, waiting = die(), deliver.send(to="x").message_id

    done = callboard("jobs", "cancel", "nobody-knows", ended, waiting)
    assert done.out == f"Asked to cancel {waiting}: it will not start.\n"
    assert "there is no job nobody-knows" in done.err
    assert done.err.endswith(f"callboard: job {ended} can't be cancelled: it has succeeded\n")
    assert done.code == ExitCode.REFUSED
    assert callboard("jobs", "cancel", ended, waiting, "--json").json == {
        "cancelled": [waiting],
        "too_late": [],
    }

    done = callboard("jobs", "retry", ended, dead)
    assert (done.code, done.out) == (ExitCode.REFUSED, f"Queued again: {dead}\n")


def test_why_is_a_sentence(callboard: Callboard, deliver: Any) -> None:
    job_id = deliver.send(to="x").message_id

    done = callboard("why", job_id)

    assert done.code == 0
    assert done.out.startswith("Queued for ")
    assert done.out.count("\n") == 1
    document = callboard("why", job_id, "--json").json
    assert (document["known"], document["facts"]["queue"]) == (True, "post.high")
    assert document["facts"]["enqueued_at"].endswith("Z")
    assert callboard("why", "nobody").code == ExitCode.NOT_FOUND


def test_why_tells_a_job_that_is_unknown_from_a_store_that_is_away(
    callboard: Callboard, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(jobs.broker.store, "get", away)

    done = callboard("why", "nobody")

    assert done.code == ExitCode.AWAY
    assert "the store can't be asked: the disk is full" in done.out


# -- watch -----------------------------------------------------------------------------------------------


def test_watch_ends_with_the_job(callboard: Callboard, deliver: Any, die: Die, jobs: Jobs) -> None:
    job_id = deliver.send(to="x").message_id
    jobs.drain()

    assert callboard("jobs", "watch", job_id).code == 0
    assert callboard("jobs", "watch", die()).code == ExitCode.UNSUCCESSFUL
    line = callboard("jobs", "watch", job_id, "--json").out
    assert json.loads(line)["state"] == "succeeded"
    assert line.count("\n") == 1


def test_watch_shows_each_change(
    callboard: Callboard, deliver: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deliver.send(to="x").message_id
    monkeypatch.setattr("callboard.cli.watching._INTERVAL", 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: jobs.drain())

    lines = callboard("jobs", "watch", job_id, "--json").out.splitlines()

    assert [json.loads(line)["state"] for line in lines] == ["queued", "succeeded"]


def test_watch_gives_up(callboard: Callboard, deliver: Any) -> None:
    job_id = deliver.send(to="x").message_id

    assert callboard("jobs", "watch", job_id, "--timeout", "0").code == ExitCode.UNSUCCESSFUL


# -- dead ------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_counted_by_cause(callboard: Callboard, die: Die) -> None:
    ids = [die(), die()]

    lines = callboard("dead", "list").out.splitlines()
    assert lines[0].split() == ["DIED", "ACTOR", "ID", "TRIES", "CAUSE", "ERROR"]
    assert lines[1].endswith("Permanent: no such street: nowhere")
    letters = callboard("dead", "list", "--json").json["letters"]
    assert [letter["id"] for letter in letters] == ids[::-1]
    (cause,) = callboard("dead", "list", "--by-cause", "--json").json["causes"]
    assert (cause["count"], cause["fingerprint"]) == (2, letters[0]["fingerprint"])
    assert callboard("dead", "list", "--by-cause").out.splitlines()[1].split()[0] == "2"


def test_an_empty_list_says_so(callboard: Callboard) -> None:
    assert callboard("dead", "list").out == "No dead letters.\n"
    assert callboard("jobs", "list").out == "No jobs.\n"
    assert callboard("workers").out == "No worker lives. Start one: callboard worker\n"
    assert callboard("quarantine", "list").out == "The quarantine is empty.\n"
    assert callboard("audit").out == "Nothing has been done yet.\n"
    assert callboard("queues", "list").out == "No queue has anything in it.\n"


def test_letters_that_the_store_does_not_know_are_not_hidden(
    callboard: Callboard, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callboard.store import open_store

    die()
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))

    done = callboard("dead", "list")
    assert "1 letter more than the store knows: 'callboard dead reindex'" in done.err
    assert callboard("dead", "reindex").out == "Read 1 dead letter into the store.\n"
    assert callboard("dead", "list").err == ""


def test_a_dead_letter_is_shown(callboard: Callboard, die: Die) -> None:
    done = callboard("dead", "show", die())

    assert "permanent: no such street: nowhere" in done.out
    assert "Traceback" in done.out
    assert "geheim" not in done.out


def test_replay_by_id_by_cause_and_mended(
    callboard: Callboard, die: Die, jobs: Jobs, broken: set[str]
) -> None:
    first, second, third = die(), die(), die("oak street")
    fingerprint = callboard("dead", "show", first, "--json").json["fingerprint"]

    assert callboard("dead", "replay", first, "--json").json["replayed"] == [first]
    done = callboard("dead", "replay", "--text", "nowhere", "--fingerprint", fingerprint, "--yes", "--json")
    assert done.json["replayed"] == [second]
    assert callboard("dead", "replay", third, "-p", '{"street": 1}').code == ExitCode.REFUSED
    done = callboard("dead", "replay", third, "--payload", '{"to": "elm street"}')
    assert (done.code, done.out) == (0, "Queued again: 1 job\n")
    broken.clear()
    assert jobs.drain().succeeded == 3


def test_nothing_chosen_is_not_everything(callboard: Callboard, die: Die, jobs: Jobs) -> None:
    die()

    for command in ("replay", "discard"):
        done = callboard("dead", command, "--yes")
        assert done.code == ExitCode.USAGE
        assert "or --all" in done.err
    assert len(jobs.dead) == 1


def test_what_throws_away_asks_first(callboard: Callboard, die: Die, jobs: Jobs) -> None:
    job_id = die()

    for arguments in (
        ["dead", "discard", job_id],
        ["dead", "discard", "--all"],
        ["queues", "purge", "post.high"],
    ):
        done = callboard(*arguments)
        assert done.code == ExitCode.USAGE
        assert "nobody is there to ask; pass --yes" in done.err
    assert len(jobs.dead) == 1


def test_discard_says_how_many(callboard: Callboard, die: Die, jobs: Jobs) -> None:
    die()
    die()

    done = callboard("dead", "discard", "--all", "--yes", "--reason", "old")

    assert (done.code, done.out) == (0, "Thrown away: 2 jobs\n")
    assert jobs.dead == []
    assert callboard("dead", "discard", "--all", "--yes").code == ExitCode.NOT_FOUND
    done = callboard("dead", "discard", "nobody-knows", "--yes")
    assert (done.code, done.out) == (ExitCode.NOT_FOUND, "")
    assert "'callboard dead reindex' puts the list right" in done.err
    entries = callboard("audit", "--json").json["entries"]
    assert (entries[-2]["action"], entries[-2]["count"], entries[-2]["who"]) == ("dead.discard", 2, "cli:ada")


# -- queues and quarantine -------------------------------------------------------------------------------


def test_queues_are_listed(callboard: Callboard, deliver: Any, die: Die) -> None:
    die()
    deliver.send(to="x")

    done = callboard("queues", "list")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[1][:4] == ["post.high", "1", "-", "-"]
    assert rows[2][:2] == ["post.dead", "1"]
    assert "4 empty queues not shown" in done.err
    assert len(callboard("queues", "list", "--json").json["queues"]) == 6
    assert len(callboard("queues", "list", "post.*", "--json").json["queues"]) == 5


def test_what_a_broker_cannot_tell_of_its_queues_is_said(
    callboard: Callboard, jobs: Jobs, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(names: list[str]) -> dict[str, QueueCounts]:
        return {name: QueueCounts(ready=3, claimed=None, delayed=None) for name in names}

    monkeypatch.setattr(jobs.broker.driver, "counts", counts)

    done = callboard("queues", "list")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[1][1:4] == ["3", "?", "?"]
    assert "this broker can't tell" in done.err
    listed = callboard("queues", "list", "--json").json["queues"]
    assert {(queue["claimed"], queue["delayed"]) for queue in listed} == {(None, None)}


def test_queues_are_not_called_empty_where_delayed_jobs_cannot_be_counted(
    callboard: Callboard, jobs: Jobs, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(names: list[str]) -> dict[str, QueueCounts]:
        return {name: QueueCounts(ready=0, claimed=None, delayed=None) for name in names}

    monkeypatch.setattr(jobs.broker.driver, "counts", counts)

    assert "claimed or delayed this broker can't tell" in callboard("queues", "list").out


def test_a_broker_whose_queues_need_no_creating_says_so(callboard: Callboard) -> None:
    assert "Nothing to do" in callboard("queues", "create").out
    assert callboard("queues", "create", "--json").json == {"created": []}


def test_queues_are_paused_and_resumed(callboard: Callboard, deliver: Any) -> None:
    assert callboard("queues", "pause", "post.*").code == 0
    assert "paused" in callboard("queues", "list").out
    assert callboard("queues", "resume", "post.*", "--json").json["resumed"][0] == "post.critical"
    assert callboard("queues", "pause", "nonsense").code == ExitCode.NOT_FOUND


def test_a_purge_says_how_many(callboard: Callboard, deliver: Any) -> None:
    deliver.send(to="x")

    assert callboard("queues", "purge", "post.high", "--yes").out == "Thrown away: 1 job of post.high\n"
    assert callboard("queues", "purge", "post.dead", "--yes").code == ExitCode.REFUSED
    assert callboard("queues", "purge", "post.hihg", "--yes").code == ExitCode.NOT_FOUND


def test_quarantine_is_listed_shown_and_emptied(callboard: Callboard, jobs: Jobs) -> None:
    jobs.broker.driver.put([Outgoing("post.high", b"\x1b[2Jgibberish", "?")], deadline=1)
    with pytest.raises(AssertionError):
        jobs.drain()

    (message,) = callboard("quarantine", "list", "--json").json["messages"]
    assert message["from"] == "post.high"
    assert message["id"] in callboard("quarantine", "list").out
    shown = callboard("quarantine", "show", message["id"]).out
    assert "gibberish" in shown
    assert "\x1b" not in shown
    assert callboard("quarantine", "replay", message["id"], "--yes").code == ExitCode.REFUSED
    assert callboard("quarantine", "discard", "--all", "--yes").out == "Thrown away: 1 message\n"
    assert callboard("quarantine", "show", message["id"]).code == ExitCode.NOT_FOUND


# -- the rest --------------------------------------------------------------------------------------------


def test_workers_are_listed(callboard: Callboard, jobs: Jobs) -> None:
    import time

    assert jobs.broker.store is not None
    now = time.time()
    queues = ("post.critical", "post.high", "post.medium", "post.low", "mail.high")
    jobs.broker.store.beat(
        Heartbeat(
            worker="h:1:a",
            at=now,
            started_at=now - 90,
            host="h",
            pid=1,
            queues=queues,
            threads=8,
            running=("j",),
        )
    )

    assert callboard("workers", "--json").json["workers"][0]["threads"] == 8
    row = callboard("workers").out.splitlines()[1]
    assert "1/8" in row
    assert "mail.high, post.*" in row


def test_schemas_are_kept_and_compared_with(callboard: Callboard, tmp_path: Path) -> None:
    file = tmp_path / "schemas.json"
    missing = callboard("schemas", "--check", str(file))
    assert missing.code == ExitCode.USAGE
    assert "schemas --write" in missing.err
    assert "2 actors" in callboard("schemas", "--write", str(file)).out
    assert callboard("schemas", "--check", str(file)).code == 0
    assert callboard("schemas", "--check", str(file), "--json").json == {"breaks": []}
    release = json.loads(file.read_text())
    release["actors"]["deliver-letter"]["payload"]["properties"]["street"] = {"type": "string"}
    release["actors"]["retired"] = release["actors"]["sweep"]
    file.write_text(json.dumps(release))
    told = callboard("schemas", "--check", str(file))
    assert told.code == ExitCode.REFUSED
    assert "deliver-letter: 'street' is gone." in told.out
    assert "version=2, upcast={1: ...}" in told.out
    found = callboard("schemas", "--check", str(file), "--json").json["breaks"]
    assert [(b["actor"], b["change"].split(",")[0]) for b in found] == [
        ("deliver-letter", "'street' is gone"),
        ("retired", "it is gone"),
    ]
    file.write_text("{}")
    assert "it holds no schemas" in callboard("schemas", "--check", str(file)).err
    assert callboard("schemas", "sweep", "--check", str(file)).code == ExitCode.USAGE


def test_schemas_tell_what_actors_accept(callboard: Callboard) -> None:
    lines = callboard("schemas").out.splitlines()
    assert lines[1].split()[:4] == ["deliver-letter", "post.high", "to", "[password]"]
    assert "Carry a letter to a street." in lines[1]
    (actor,) = callboard("schemas", "deliver_letter", "--json").json["actors"]
    assert actor["payload"]["required"] == ["to"]
    assert '"additionalProperties": false' in callboard("schemas", "deliver-letter").out
    assert "0 3 * * *" in callboard("schemas", "sweep").out
    assert callboard("schemas", "delivr-letter").code == ExitCode.NOT_FOUND


def test_text_from_jobs_cannot_drive_the_terminal(callboard: Callboard, die: Die) -> None:
    job_id = die("\x1b[31mred\x07\nsecond line")

    for arguments in (["jobs", "list"], ["jobs", "show", job_id], ["dead", "list"], ["dead", "show", job_id]):
        out = callboard(*arguments).out
        assert "\x1b" not in out
        assert "\x07" not in out
    assert len(callboard("dead", "list").out.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["queues", "list"],
        ["queues", "purge", "post.high", "--yes"],
        ["dead", "replay", "--all", "--yes"],
        ["dead", "reindex"],
        ["quarantine", "list"],
    ],
)
def test_a_broker_that_is_away_gives_one_sentence(
    callboard: Callboard, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def away(*_: object, **__: object) -> None:
        raise BrokerUnavailable("RabbitMQ at localhost:5672 is away: connection refused")

    for method in ("queues", "counts", "walk", "peek"):
        monkeypatch.setattr(jobs.broker.driver, method, away)

    done = callboard(*arguments)

    assert done.code == ExitCode.AWAY
    assert done.err == "callboard: RabbitMQ at localhost:5672 is away: connection refused\n"
    assert done.out == ""


def test_a_bug_is_told_in_a_sentence_and_with_its_traceback_on_demand(
    callboard: Callboard, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(jobs.broker.store, "workers", fail)

    done = callboard("workers")
    assert done.code == ExitCode.BUG
    assert done.err == "callboard: unforeseen ZeroDivisionError: oops; CALLBOARD_DEBUG=1 shows where\n"
    monkeypatch.setenv("CALLBOARD_DEBUG", "1")
    assert "Traceback" in callboard("workers").err


def test_a_full_disk_and_a_read_only_folder_are_told_in_a_sentence(
    callboard: Callboard, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {
        OSError(
            28, "No space left on device", "/srv/var/store.db"
        ): "No space left on device (/srv/var/store.db)",
        PermissionError(13, "Permission denied", "/srv/var"): "Permission denied (/srv/var)",
    }
    for error, sentence in errors.items():

        def fail(*_: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(jobs.broker.store, "workers", fail)
        done = callboard("workers")
        assert (done.code, done.err) == (ExitCode.AWAY, f"callboard: {sentence}\n")


def test_help_names_every_command_and_every_exit_code(callboard: Callboard) -> None:
    done = callboard("--help")

    assert done.code == 0
    for word in ("worker", "dev", "enqueue", "why", "jobs", "dead", "queues", "schemas", "settings", "demo"):
        assert f"  {word} " in done.out
    for code in ExitCode:
        assert f"{code.value}  {code.meaning}" in done.out


def test_a_misspelt_command_suggests_the_right_one(callboard: Callboard) -> None:
    done = callboard("jobz")

    assert done.code == ExitCode.USAGE
    assert "jobs" in done.err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("critical=1", {Priority.CRITICAL: 1}),
        ("critical=1, HIGH = 2,", {Priority.CRITICAL: 1, Priority.HIGH: 2}),
    ],
)
def test_reserved_threads_are_read(text: str, found: dict[Priority, int]) -> None:
    assert _reserved(text) == found


@pytest.mark.parametrize("text", ["critical", "low=1", "urgent=1", "critical=0", "high=-1", "high=1,high=2"])
def test_what_reserves_nothing_is_refused(text: str, callboard: Callboard) -> None:
    refused = callboard("worker", "--reserve", text)
    assert refused.code == ExitCode.USAGE
    assert "reserves nothing" in refused.err
