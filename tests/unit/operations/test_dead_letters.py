"""Dead letters: reading the index, and the walks that change the queue."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from callboard import State, dead_letter, envelope, queues
from callboard.actor import ActorDecorator
from callboard.brokers.driver import Outgoing
from callboard.envelope import Headers, Signer
from callboard.errors import InvalidPayload, JobNotFound, NotPossible, StoreUnavailable
from callboard.operations import Letters, Operations
from callboard.store import open_store
from callboard.testing import Jobs

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


def _copy(jobs: Jobs, job_id: str) -> None:
    """Leave a second copy of a letter, as a walk does that is killed half-way."""
    letter = next(letter for letter in jobs.dead if letter.job_id == job_id)
    jobs.broker.driver.put([Outgoing("post.dead", dead_letter.encode(letter), job_id)], deadline=1)


class _Away:
    """A store of which nothing can be had."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the disk is full")

        return refuse


def _without_store(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> Operations:
    monkeypatch.setattr(jobs.broker, "store", _Away())
    return Operations(jobs.broker, who="ada")


# -- reading ---------------------------------------------------------------------------------------------


def test_the_index_lists_the_newest_first_and_filters(operations: Operations, die: Die, jobs: Jobs) -> None:
    first = die("elm street", tags=["slow"])
    jobs.clock.advance(timedelta(hours=2))
    second = die("oak street")

    assert [letter.job_id for letter in operations.dead.search()] == [second, first]
    (by_tag,) = operations.dead.search(Letters(tags=["slow"]))
    assert (by_tag.job_id, by_tag.actor, by_tag.category, by_tag.attempts) == (first, "deliver", "post", 1)
    assert by_tag.error == "Permanent: no such street: elm street"
    (by_text,) = operations.dead.search(Letters(text="OAK"))
    assert by_text.job_id == second
    recent = Letters(since=jobs.clock() - 60)
    assert [letter.job_id for letter in operations.dead.search(recent)] == [second]
    old = Letters(until=jobs.clock() - 60)
    assert [letter.job_id for letter in operations.dead.search(old)] == [first]
    assert operations.dead.search(Letters(actors=["somebody"])) == []


def test_causes_are_counted_by_fingerprint(operations: Operations, die: Die) -> None:
    for _ in range(3):
        die("nowhere")

    (cause,) = operations.dead.causes()
    assert (cause.count, cause.actor, cause.error) == (3, "deliver", "Permanent: no such street: nowhere")


def test_a_letter_is_shown_with_its_traceback_and_masked_payload(operations: Operations, die: Die) -> None:
    details = operations.dead.show(die())

    assert "no such street" in details.traceback
    assert "geheim" not in details.payload
    assert '"to":"nowhere"' in details.payload
    assert not details.from_broker


def test_a_letter_that_the_store_lost_is_shown_from_its_queue(
    operations: Operations, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = die()
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))
    operations = Operations(jobs.broker)

    assert operations.dead.search() == []
    assert operations.dead.unindexed() == 1
    details = operations.dead.show(job_id)
    assert details.from_broker
    assert details.summary.reason == "permanent: no such street: nowhere"
    assert "geheim" not in details.payload
    assert [line.text for line in details.story] == ["attempt 1 failed: Permanent: no such street: nowhere"]


def test_a_job_that_lives_is_no_letter(operations: Operations, deliver: Any) -> None:
    job_id = deliver.send(to="elm street").message_id

    with pytest.raises(JobNotFound, match="it is queued"):
        operations.dead.show(job_id)


# -- replaying -------------------------------------------------------------------------------------------


def test_a_replay_sends_the_same_bytes_with_all_attempts_before_it(
    operations: Operations, die: Die, jobs: Jobs, broken: set[str]
) -> None:
    job_id = die()
    original = jobs.dead[0].original
    broken.clear()

    result = operations.dead.replay(Letters(ids=[job_id]))

    assert (result.job_ids, result.seen, result.not_found) == ([job_id], 1, [])
    (message,) = jobs.broker.driver.peek("post.high")
    assert message.body == original
    headers = envelope.decode_headers(message.headers)
    assert (headers.attempt, headers.deaths, headers.replayed_at) == (0, 1, jobs.clock())
    assert [error.message for error in headers.errors] == ["no such street: nowhere"]
    assert jobs.record(job_id).reason == ""
    (waiting,) = jobs.waiting
    assert (waiting.id, waiting.attempt) == (job_id, 1)
    assert jobs.state(job_id) is State.QUEUED
    assert jobs.dead == []
    assert jobs.drain().succeeded == 1  # so its signature still holds
    assert jobs.state(job_id) is State.SUCCEEDED
    assert any(event.text == "replayed by ada" for event in jobs.record(job_id).events)


def test_a_job_can_die_and_be_replayed_again_and_again(operations: Operations, die: Die, jobs: Jobs) -> None:
    job_id = die()
    for death in (1, 2, 3):
        assert [letter.death for letter in jobs.dead] == [death]
        operations.dead.replay(Letters(ids=[job_id]))
        jobs.drain(fail=False)
        assert jobs.state(job_id) is State.DEAD


def test_a_replay_forgets_that_the_job_was_to_be_cancelled(
    operations: Operations, die: Die, jobs: Jobs, broken: set[str]
) -> None:
    job_id = die()
    assert jobs.broker.store is not None
    jobs.broker.store.cancel(job_id, at=jobs.clock())
    broken.clear()

    operations.dead.replay(Letters(ids=[job_id]))

    assert jobs.drain().succeeded == 1


def test_a_replay_by_fingerprint_takes_those_and_leaves_the_others(
    operations: Operations, die: Die, jobs: Jobs, actor: ActorDecorator
) -> None:
    @actor(category="post")
    def stamp(n: int) -> None:
        raise ZeroDivisionError

    wanted = {die("nowhere"), die("nowhere")}
    other = stamp.using(job_id="other").send(n=1).message_id
    jobs.drain(fail=False)
    fingerprint = operations.dead.show(next(iter(wanted))).summary.fingerprint

    result = operations.dead.replay(Letters(fingerprint=fingerprint))

    assert set(result.job_ids) == wanted
    assert [letter.job_id for letter in jobs.dead] == [other]


def test_copies_of_a_letter_are_merged_into_one_job(operations: Operations, die: Die, jobs: Jobs) -> None:
    job_id = die()
    _copy(jobs, job_id)
    _copy(jobs, job_id)

    result = operations.dead.replay(Letters(actors=["deliver"]))

    assert (result.job_ids, result.merged, result.seen) == ([job_id], 2, 3)
    assert [job.id for job in jobs.waiting] == [job_id]


def test_a_replay_works_while_the_store_is_away(
    operations: Operations, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = die()

    result = _without_store(jobs, monkeypatch).dead.replay(Letters(ids=[job_id]))

    assert (result.job_ids, result.recorded) == ([job_id], False)
    assert [job.id for job in jobs.waiting] == [job_id]


def test_an_id_that_has_no_letter_is_told(operations: Operations, die: Die) -> None:
    job_id = die()

    result = operations.dead.replay(Letters(ids=[job_id, "nobody"]))

    assert (result.job_ids, result.not_found) == ([job_id], ["nobody"])


def test_a_job_whose_deadline_has_passed_is_counted(operations: Operations, die: Die, jobs: Jobs) -> None:
    die(expires=timedelta(minutes=5))
    jobs.clock.advance(timedelta(days=1))

    assert operations.dead.replay(Letters()).past_deadline == 1


def test_a_unique_job_stays_dead_while_another_has_its_key(
    operations: Operations, die: Die, deliver: Any, jobs: Jobs, broken: set[str]
) -> None:
    dead = die(unique="the round")
    broken.clear()
    other = deliver.using(unique="the round").send(to="elm street").message_id

    result = operations.dead.replay(Letters(ids=[dead]))

    assert (result.job_ids, result.not_found, result.key_taken) == ([], [], {dead: other})
    assert [letter.job_id for letter in jobs.dead] == [dead]
    assert jobs.state(dead) is State.DEAD
    with pytest.raises(NotPossible, match=f"job {other} has its unique key now"):
        operations.jobs.retry(dead)


def test_a_key_of_a_job_that_is_being_replayed_is_not_taken_over(
    operations: Operations,
    die: Die,
    deliver: Any,
    jobs: Jobs,
    broken: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record says dead until the batch is recorded, and the job may be queued by then."""
    dead = die(unique="the round")
    broken.clear()
    between: list[str] = []
    record = operations.dead._record

    def record_late(*args: Any) -> None:
        if not between:
            between.append(deliver.using(unique="the round").send(to="elm street").message_id)
        record(*args)

    monkeypatch.setattr(operations.dead, "_record", record_late)
    assert operations.dead.replay(Letters(ids=[dead])).job_ids == [dead]
    assert between == [dead]


def test_a_replayed_unique_job_has_its_key_again_until_it_ends(
    operations: Operations, die: Die, deliver: Any, jobs: Jobs, broken: set[str]
) -> None:
    dead = die(unique="the round")
    broken.clear()

    assert operations.dead.replay(Letters(ids=[dead])).job_ids == [dead]

    assert deliver.using(unique="the round").send(to="elm street").message_id == dead
    assert jobs.drain().succeeded == 1
    assert deliver.using(unique="the round").send(to="elm street").message_id != dead


def test_a_unique_job_stays_dead_while_the_store_cannot_tell_who_has_its_key(
    operations: Operations, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = die(unique="the round")

    result = _without_store(jobs, monkeypatch).dead.replay(Letters(ids=[dead]))

    assert (result.job_ids, result.key_taken) == ([], {dead: ""})
    assert [letter.job_id for letter in jobs.dead] == [dead]


def test_a_forged_letter_takes_no_key(operations: Operations, die: Die, deliver: Any, jobs: Jobs) -> None:
    dead = die()
    _forge(jobs, dead, body={"options": {"callboard": {"v": 1, "unique": "deliver:the round"}}})

    operations.dead.replay(Letters(ids=[dead]))

    assert deliver.using(unique="the round").send(to="elm street").message_id != dead


def test_a_mended_payload_is_checked_signed_and_run(operations: Operations, die: Die, jobs: Jobs) -> None:
    job_id = die()

    with pytest.raises(InvalidPayload, match="'street' is not a parameter"):
        operations.dead.replay(Letters(ids=[job_id]), payload={"to": "x", "street": 3})
    assert len(jobs.dead) == 1

    operations.dead.replay(Letters(ids=[job_id]), payload={"to": "elm street", "password": "geheim"})

    assert jobs.drain().succeeded == 1
    record = jobs.record(job_id)
    assert '"to":"elm street"' in record.payload
    assert "geheim" not in record.payload
    assert operations.audit_log()[0].details["mended"] is True


def _forge(jobs: Jobs, died: str, *, sign: bool = False, **changed: Any) -> None:
    """Put a letter in the place of one that died, with other fields; `options` go into its message."""
    letter = next(letter for letter in jobs.dead if letter.job_id == died)
    jobs.broker.driver.purge("post.dead")
    message = msgspec.json.decode(letter.original) | changed.pop("body", {})
    headers = changed.pop("headers", letter.headers)
    text = msgspec.json.encode(message).decode()
    if sign:
        signer = Signer.parse("k1:0123456789abcdef")
        headers = msgspec.structs.replace(headers, signature=signer.sign(letter.queue, text.encode()))
    forged = msgspec.structs.replace(letter, **({"message": text, "headers": headers} | changed))
    jobs.broker.driver.put([Outgoing("post.dead", dead_letter.encode(forged), died)], deadline=1)


def test_a_forged_letter_is_not_signed_by_mending_it(operations: Operations, die: Die, jobs: Jobs) -> None:
    job_id = die()
    _forge(jobs, job_id, body={"options": {"on_success": "deliver"}})

    with pytest.raises(
        NotPossible, match=f"the letter of job {job_id} can't be mended: its signature is wrong"
    ):
        operations.dead.replay(Letters(ids=[job_id]), payload={"to": "elm street"})
    assert len(jobs.dead) == 1
    assert jobs.waiting == []


@pytest.mark.parametrize("other", [{"message_id": "another"}, {"actor_name": "another"}])
def test_a_letter_around_the_message_of_another_job_is_not_mended(
    operations: Operations, die: Die, jobs: Jobs, other: dict[str, str]
) -> None:
    job_id = die()
    _forge(jobs, job_id, sign=True, body=other)

    with pytest.raises(NotPossible, match=r"the message in it is of job .*; it can only be discarded"):
        operations.dead.replay(Letters(ids=[job_id]), payload={"to": "elm street"})
    assert jobs.waiting == []


def test_a_mended_payload_is_for_one_letter(operations: Operations) -> None:
    with pytest.raises(ValueError, match="give one id"):
        operations.dead.replay(Letters(), payload={})


# -- discarding ------------------------------------------------------------------------------------------


def test_a_discard_is_audited_before_and_after_and_recorded(
    operations: Operations, die: Die, jobs: Jobs
) -> None:
    gone, kept = die("nowhere"), die("elsewhere")

    result = operations.dead.discard(Letters(text="nowhere"), reason="moved away")

    assert result.job_ids == [gone]
    assert [letter.job_id for letter in jobs.dead] == [kept]
    assert jobs.state(gone) is State.DISCARDED
    assert jobs.record(gone).reason == "discarded by ada: moved away"
    done, begun = operations.audit_log()
    assert (begun.action, begun.count, begun.details["step"]) == ("dead.discard", 0, "begun")
    assert (done.actor, done.action, done.count) == ("ada", "dead.discard", 1)
    assert done.details["job_ids"] == [gone]


def test_what_cannot_be_audited_is_not_discarded(
    operations: Operations, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    die()

    with pytest.raises(StoreUnavailable, match="the disk is full"):
        _without_store(jobs, monkeypatch).dead.discard(Letters())
    assert len(jobs.dead) == 1


def test_what_is_no_letter_is_kept_and_told(operations: Operations, die: Die, jobs: Jobs) -> None:
    die()
    jobs.broker.driver.put([Outgoing("post.dead", b"gibberish", "?")], deadline=1)

    result = operations.dead.discard(Letters())

    assert (len(result.job_ids), result.unreadable) == (1, 1)
    assert [message.body for message in jobs.broker.driver.peek("post.dead")] == [b"gibberish"]


_MALFORMED: dict[str, dict[str, Any]] = {
    "no base64": {"encoding": "base64", "message": "A"},
    "an unknown encoding": {"encoding": "rot13"},
    "no queue": {"queue": ""},
    "another category": {"queue": "bank.high"},
    "a queue of dead letters": {"queue": "post.dead"},
    "no id": {"job_id": ""},
    "an id of two lines": {"job_id": "a\nb"},
    "a death that no store can hold": {"death": 2**63},
    "a hop that no store can hold": {"headers": Headers(hop=2**62)},
    "a death after all calendars": {"died_at": 1e300},
}


@pytest.mark.parametrize("changed", _MALFORMED.values(), ids=_MALFORMED.keys())
def test_a_malformed_letter_stays_and_does_not_stop_the_others(
    operations: Operations, die: Die, jobs: Jobs, broken: set[str], changed: dict[str, Any]
) -> None:
    _forge(jobs, die("nowhere"), **changed)
    good = die("elsewhere")
    broken.clear()

    result = operations.dead.replay(Letters())

    assert (result.job_ids, result.unreadable) == ([good], 1)
    assert jobs.drain().succeeded == 1
    assert operations.dead.discard(Letters()).unreadable == 1
    assert operations.dead.reindex().unreadable == 1
    assert operations.dead.counts() == {}
    assert len(operations.quarantine.search()) == 1


def test_a_letter_around_a_message_that_is_nested_too_deeply_does_not_stop_the_others(
    operations: Operations, die: Die, jobs: Jobs
) -> None:
    deep = die("nowhere")
    _forge(jobs, deep, message="[" * 100_000)
    good = die("elsewhere")

    assert operations.dead.reindex().job_ids == [deep, good]
    assert operations.dead.replay(Letters()).job_ids == [deep, good]


def test_a_long_walk_tells_how_far_it_is(operations: Operations, die: Die) -> None:
    for _ in range(3):
        die()
    told: list[tuple[str, int, int]] = []

    operations.dead.discard(Letters(), progress=lambda *progress: told.append(progress))

    assert told[-1] == ("post.dead", 3, 3)


# -- the index -------------------------------------------------------------------------------------------


def test_a_lost_index_is_built_again_from_the_queues(
    operations: Operations, die: Die, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {die("nowhere", tags=["slow"]), die("elsewhere")}
    before = {letter.job_id: letter for letter in operations.dead.search()}
    _copy(jobs, next(iter(lost)))
    monkeypatch.setattr(jobs.broker, "store", open_store("memory:"))
    operations = Operations(jobs.broker)

    result = operations.dead.reindex()

    assert (set(result.job_ids), result.merged) == (lost, 1)
    assert {letter.job_id: letter for letter in operations.dead.search()} == before
    assert operations.dead.unindexed() == 0
    assert "geheim" not in operations.dead.show(next(iter(lost))).payload


def test_reindexing_sends_what_is_no_letter_into_quarantine(operations: Operations, jobs: Jobs) -> None:
    jobs.broker.driver.declare("post.dead")
    jobs.broker.driver.put([Outgoing("post.dead", b"gibberish", "?")], deadline=1)

    assert operations.dead.reindex().unreadable == 1
    assert [message.body for message in jobs.broker.driver.peek(queues.QUARANTINE)] == [b"gibberish"]


def test_reindexing_settles_records_whose_letter_is_gone(
    operations: Operations, die: Die, jobs: Jobs
) -> None:
    job_id = die()
    jobs.broker.driver.purge("post.dead")  # as if a walk had broken off before it could record
    jobs.clock.advance(timedelta(seconds=1))

    assert operations.dead.reindex().stale == 1
    assert jobs.state(job_id) is State.DISCARDED
    assert "no longer in the queue" in jobs.record(job_id).reason


def test_a_replayed_job_is_not_called_dead_by_a_late_reindex(
    operations: Operations, die: Die, jobs: Jobs, broken: set[str]
) -> None:
    job_id = die()
    _copy(jobs, job_id)
    letter = jobs.dead[0]
    broken.clear()
    operations.dead.replay(Letters(ids=[job_id]))
    jobs.drain()
    jobs.broker.driver.put([Outgoing("post.dead", dead_letter.encode(letter), job_id)], deadline=1)

    operations.dead.reindex()

    assert jobs.state(job_id) is State.SUCCEEDED


def test_thousands_of_letters_are_replayed_in_one_walk(jobs: Jobs, operations: Operations, die: Die) -> None:
    die()
    letter = jobs.dead[0]
    driver = jobs.broker.driver
    driver.purge("post.dead")
    body = dead_letter.encode(letter).decode()
    many = [
        Outgoing("post.dead", body.replace(letter.job_id, f"job-{n}").encode(), f"job-{n}")
        for n in range(2000)
    ]
    driver.put(many, deadline=5)

    result = operations.dead.replay(Letters())

    assert len(result.job_ids) == 2000
    assert result.recorded
    assert {jobs.state(f"job-{n}") for n in (0, 999, 1999)} == {State.QUEUED}
    assert driver.counts(["post.high"])["post.high"].ready == 2000


def test_a_letter_stays_for_years_until_somebody_discards_it(
    operations: Operations, deliver: Any, jobs: Jobs, broken: set[str]
) -> None:
    broken.add("nowhere")
    job_id = deliver.send(to="nowhere").message_id
    jobs.drain(fail=False)
    jobs.clock.advance(timedelta(days=3_650))
    jobs.drain(fail=False)

    assert [letter.job_id for letter in operations.dead.search()] == [job_id]
    assert operations.dead.counts() == {"post": 1}
    operations.dead.discard(Letters(ids=[job_id]), reason="nobody lives there")
    assert operations.dead.counts() == {}
