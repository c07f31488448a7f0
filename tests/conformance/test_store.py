"""What every store does, whatever it keeps records in. A store joins by one line in `SUBJECTS`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callboard.errors import InvalidQuery, StoreUnavailable
from callboard.servers import PrivateRedis
from callboard.states import State, order
from callboard.store.base import (
    TICKS_KEPT,
    AuditEntry,
    Change,
    Fate,
    Heartbeat,
    Page,
    Query,
    Record,
    ScheduleState,
    Store,
    Tick,
)
from callboard.store.recorder import Recorder
from callboard.store.redis import RedisStore
from callboard.store.sqlite import SQLiteStore

PATIENCE = 30.0  # seconds that an event may take on a slow machine; none should need them
NOON = 1_700_000_000.0


class Clock:
    """A store's clock, which a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Subject:
    """A store under test."""

    #: Opens the store, or one more on the same records. It can be pickled where `across_processes` holds.
    open: Callable[..., Store]
    across_processes: bool = True
    clock: Clock = field(default_factory=Clock)
    stack: ExitStack = field(default_factory=ExitStack)

    def store(self) -> Store:
        store = self.open(clock=self.clock)
        self.stack.callback(store.close)
        return store


def _in_memory(request: pytest.FixtureRequest) -> Subject:
    return Subject(partial(SQLiteStore, ":memory:"), across_processes=False)


def _in_a_file(request: pytest.FixtureRequest) -> Subject:
    return Subject(partial(SQLiteStore, request.getfixturevalue("tmp_path") / "store.db"))


def _in_redis(request: pytest.FixtureRequest, kind: str = "redis") -> Subject:
    server: PrivateRedis = request.getfixturevalue(f"{kind}_server")
    server.empty()
    return Subject(partial(RedisStore, server.url, namespace="tests"))


SUBJECTS: dict[str, Callable[[pytest.FixtureRequest], Subject]] = {
    "file": _in_a_file,
    "memory": _in_memory,
    "redis": _in_redis,
    "valkey": partial(_in_redis, kind="valkey"),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    made = SUBJECTS[request.param](request)
    with made.stack:
        yield made


@pytest.fixture
def store(subject: Subject) -> Store:
    return subject.store()


@pytest.fixture
def clock(subject: Subject) -> Clock:
    return subject.clock


@pytest.fixture
def shared(subject: Subject) -> Subject:
    """A store that several processes can open."""
    if not subject.across_processes:
        pytest.skip("this store is one process's own")
    return subject


def queued(job_id: str, *, at: float = NOON, hop: int = 0, **known: Any) -> Change:
    known.setdefault("actor", "send-email")
    known.setdefault("category", "email")
    known.setdefault("queue", "email.3")
    known.setdefault("enqueued_at", at)
    return Change(job_id=job_id, order=order(hop, State.QUEUED), state=State.QUEUED, at=at, **known)


def moved(job_id: str, state: State, *, at: float = NOON, hop: int = 0, **known: Any) -> Change:
    return Change(job_id=job_id, order=order(hop, state), state=state, at=at, **known)


def read(store: Store, job_id: str) -> Record:
    record = store.get(job_id)
    assert record is not None
    return record


def ids(page: Page) -> list[str]:
    return [record.job_id for record in page.records]


def every_id(store: Store, query: Query) -> list[str]:
    """The ids of all pages, one after the other."""
    found = []
    while True:
        page = store.search(query)
        found += ids(page)
        if page.next is None:
            return found
        query.after = page.next


# -- records ---------------------------------------------------------------------------------------------


def test_an_unknown_job_has_no_record(store: Store) -> None:
    assert store.get("nobody") is None


def test_a_record_shows_all_that_a_change_said(store: Store) -> None:
    said: dict[str, Any] = {
        "actor": "send-email",
        "category": "email",
        "queue": "email.2",
        "priority": 2,
        "tags": ("tenant:42", "größte"),
        "payload": '{"to": "ada@example.org"}',
        "enqueued_at": NOON,
        "due_at": NOON + 1,
        "expires_at": NOON + 2,
        "started_at": NOON + 3,
        "finished_at": NOON + 4,
        "attempt": 3,
        "worker": "host:1:abc",
        "error_type": "ValueError",
        "error": "no such thing",
        "traceback": "Traceback ...",
        "fingerprint": "f00d",
        "reason": "after 3 attempts",
        "progress": 0.25,
        "progress_note": "rows",
    }
    store.write([moved("a", State.DEAD, at=NOON + 5, **said)])
    record = read(store, "a")
    assert {name: getattr(record, name) for name in said} == said
    assert (record.state, record.updated_at, record.order) == (State.DEAD, NOON + 5, order(0, State.DEAD))


def test_what_nobody_said_shows_as_the_records_defaults(store: Store) -> None:
    store.write([moved("a", State.RUNNING)])
    expected = Record(job_id="a", order=order(0, State.RUNNING), state=State.RUNNING, updated_at=NOON)
    assert read(store, "a") == expected


def test_a_later_change_leaves_what_it_does_not_mention(store: Store) -> None:
    store.write([queued("a", payload="{}")])
    store.write([moved("a", State.RUNNING, worker="w", at=NOON + 1)])
    record = read(store, "a")
    assert (record.state, record.actor, record.payload, record.worker) == (
        State.RUNNING,
        "send-email",
        "{}",
        "w",
    )


def test_a_late_change_fills_gaps_and_overwrites_nothing_newer(store: Store) -> None:
    store.write([moved("a", State.SUCCEEDED, at=NOON + 9, worker="w", finished_at=NOON + 9)])
    store.write([queued("a", payload="{}", worker="nobody yet")])
    record = read(store, "a")
    assert (record.state, record.updated_at) == (State.SUCCEEDED, NOON + 9)
    assert (record.worker, record.payload, record.enqueued_at) == ("w", "{}", NOON)


def test_a_change_from_between_overwrites_what_is_older_and_nothing_newer(store: Store) -> None:
    store.write([moved("a", State.RETRYING, hop=1, error="first", worker="w1", due_at=NOON + 5)])
    store.write([moved("a", State.SUCCEEDED, hop=2, worker="w3")])
    store.write([moved("a", State.RETRYING, hop=2, error="second", worker="w2")])
    record = read(store, "a")
    assert (record.state, record.error, record.worker, record.due_at) == (
        State.SUCCEEDED,
        "second",
        "w3",
        NOON + 5,
    )


def test_of_equally_new_changes_the_last_one_written_holds(store: Store) -> None:
    store.write([moved("a", State.RUNNING, worker="w1", progress=0.5, at=NOON + 2)])
    store.write([moved("a", State.RUNNING, worker="w2", at=NOON + 1)])
    record = read(store, "a")
    assert (record.worker, record.progress, record.updated_at) == ("w2", 0.5, NOON + 1)
    store.write([moved("a", State.RUNNING, progress=0.1), moved("a", State.RUNNING, progress=0.2)])
    assert read(store, "a").progress == 0.2


_values = st.none() | st.sampled_from([1, 2, 3])
_texts = st.none() | st.sampled_from(["x", "y", "z"])
_strategies: dict[str, st.SearchStrategy[Any]] = {
    "tags": st.none() | st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(tuple),
    **dict.fromkeys(("priority", "attempt"), _values),
    **dict.fromkeys(
        ("enqueued_at", "due_at", "expires_at", "started_at", "finished_at", "progress"),
        _values.map(lambda value: value and float(value)),
    ),
}
_known = set(Change.__struct_fields__) - {"job_id", "order", "state", "at", "event"}


@st.composite
def _tellings(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The changes of one job, the oldest first, and a division into batches in any sequence."""
    orders = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted))
    said = st.fixed_dictionaries({name: _strategies.get(name, _texts) for name in sorted(_known)})
    story = [
        {"order": n, "state": draw(st.sampled_from(State)), "at": NOON + n, "event": f"line {n}"} | draw(said)
        for n in orders
    ]
    sequence = draw(st.permutations(range(len(story))))
    cuts = sorted(draw(st.sets(st.integers(1, len(story)))) | {0, len(story)})
    return story, [list(sequence[a:b]) for a, b in pairwise(cuts)]


@given(_tellings())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_ends_the_same_however_its_story_is_told(
    store: Store, telling: tuple[list[dict[str, Any]], list[list[int]]]
) -> None:
    story, batches = telling
    job_id = uuid.uuid4().hex
    for batch in batches:
        store.write([Change(job_id=job_id, **story[n]) for n in batch])

    expected = Record(
        job_id=job_id, order=story[-1]["order"], state=story[-1]["state"], updated_at=story[-1]["at"]
    )
    for change in story:
        for name in _known:
            if change[name] is not None:
                setattr(expected, name, change[name])
    record = read(store, job_id)
    assert [event.text for event in record.events] == [change["event"] for change in story]
    record.events = ()
    assert record == expected


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    broken = queued("b")
    broken.at = None  # type: ignore[assignment]  # what no store can take
    with pytest.raises(Exception):  # noqa: B017 - which one is the store's affair
        store.write([queued("a"), broken])
    assert store.get("a") is None


def test_values_that_no_database_takes_do_not_hold_up_a_batch(store: Store) -> None:
    store.write([queued("a", payload="half a pair: \ud83d", attempt=2**70), queued("b", payload="whole")])
    assert read(store, "b").payload == "whole"
    assert read(store, "a").payload.startswith("half a pair: ")


# -- stories ---------------------------------------------------------------------------------------------


def test_a_story_is_told_in_the_order_of_its_times(store: Store) -> None:
    store.write([moved("a", State.RUNNING, at=NOON + 2, attempt=1, worker="w", event="started")])
    store.write([queued("a", at=NOON + 1, event="sent"), moved("a", State.RETRYING, hop=1, at=NOON + 3)])
    events = read(store, "a").events
    assert [(event.at, event.text, event.state) for event in events] == [
        (NOON + 1, "sent", State.QUEUED),
        (NOON + 2, "started", State.RUNNING),
    ]
    assert (events[1].attempt, events[1].worker) == (1, "w")


def test_a_story_keeps_its_newest_hundred_lines(store: Store) -> None:
    for first in (0, 130, 260):
        store.write(
            [moved("a", State.RUNNING, at=NOON + n, event=f"line {n}") for n in range(first, first + 130)]
        )
        last = first + 130
        assert [event.text for event in read(store, "a").events] == [
            f"line {n}" for n in range(last - 100, last)
        ]


def test_stories_are_not_mixed_up(store: Store) -> None:
    store.write([queued(job, event=f"sent {job}") for job in "abc"])
    assert [event.text for event in read(store, "b").events] == ["sent b"]
    assert all(record.events == () for record in store.search(Query()).records)


# -- search ----------------------------------------------------------------------------------------------


@pytest.fixture
def found(store: Store) -> Callable[..., list[str]]:
    """Twelve jobs, and a search among them."""
    changes = []
    for n, job_id in enumerate("abcdefghijkl"):
        email = n % 3 != 0
        changes.append(
            queued(
                job_id,
                at=NOON + n,
                actor="send-email" if email else "export-csv",
                category="email" if email else "reports",
                queue=("email" if email else "reports") + (".2" if n % 2 else ".3"),
                tags=(f"n{n}", "even" if n % 2 == 0 else "odd"),
                payload=f'{{"to": "{job_id}@example.org", "share": "100%_!"}}',
            )
        )
    changes += [
        moved("b", State.DEAD, error="No route", fingerprint="f1"),
        moved("c", State.DEAD, error="timeout", reason="after 5 attempts", fingerprint="f2"),
        moved("d", State.DEAD, fingerprint="f1"),
        moved("e", State.RUNNING),
    ]
    store.write(changes)

    def search(**conditions: Any) -> list[str]:
        return every_id(store, Query(limit=2, **conditions))

    return search


def test_a_search_without_conditions_finds_all_jobs_newest_first(found: Callable[..., list[str]]) -> None:
    assert "".join(found()) == "lkjihgfedcba"


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"states": [State.DEAD]}, "dcb"),
        ({"states": [State.DEAD, State.RUNNING]}, "edcb"),
        ({"states": [State.EXPIRED]}, ""),
        ({"categories": ["reports"]}, "jgda"),
        ({"categories": ["reports", "email"], "states": [State.DEAD]}, "dcb"),
        ({"actors": ["export-csv"], "states": [State.QUEUED]}, "jga"),
        ({"actors": ["send-email"], "queues": ["email.2"]}, "lhfb"),
        ({"actors": ["nobody"]}, ""),
        ({"queues": ["reports.3", "email.3"]}, "kigeca"),
        ({"tags": ["odd"]}, "ljhfdb"),
        ({"tags": ["odd", "n3"]}, "d"),
        ({"tags": ["n3", "even"]}, ""),
        ({"tags": ["even"], "states": [State.DEAD]}, "c"),
        ({"fingerprint": "f1"}, "db"),
        ({"fingerprint": "f1", "categories": ["email"]}, "b"),
        ({"since": NOON + 9}, "lkj"),
        ({"until": NOON + 2}, "ba"),
        ({"since": NOON + 2, "until": NOON + 4, "states": [State.DEAD]}, "dc"),
        ({"text": "K@EXAMPLE"}, "k"),
        ({"text": "route"}, "b"),
        ({"text": "after 5"}, "c"),
        ({"text": "100%_!"}, "lkjihgfedcba"),
        ({"text": "0_%"}, ""),
        ({"text": "example", "states": [State.DEAD], "tags": ["odd"]}, "db"),
    ],
)
def test_a_search_finds_what_fits_all_its_conditions(
    found: Callable[..., list[str]], conditions: dict[str, Any], expected: str
) -> None:
    assert "".join(found(**conditions)) == expected


def test_a_search_sees_a_job_under_its_present_state_only(store: Store) -> None:
    store.write([queued("a", tags=("x",))])
    store.write([moved("a", State.RUNNING)])
    assert ids(store.search(Query(states=[State.QUEUED]))) == []
    assert ids(store.search(Query(states=[State.RUNNING], tags=["x"]))) == ["a"]


def test_tags_that_were_replaced_are_not_found_any_more(store: Store) -> None:
    store.write([queued("a", tags=("old", "both"))])
    store.write([moved("a", State.RUNNING, tags=("both", "new"))])
    assert [ids(store.search(Query(tags=[tag]))) for tag in ("old", "both", "new")] == [[], ["a"], ["a"]]


def test_what_kind_a_job_is_may_become_known_late(store: Store) -> None:
    store.write([moved("a", State.RUNNING)])
    assert ids(store.search(Query(states=[State.RUNNING]))) == ["a"]
    store.write([queued("a")])
    assert ids(store.search(Query(actors=["send-email"], states=[State.RUNNING]))) == ["a"]


def test_pages_neither_repeat_nor_skip_while_jobs_arrive(store: Store) -> None:
    for states in ([], [State.QUEUED]):
        marker = uuid.uuid4().hex
        there = [f"{marker}-{n}" for n in range(50)]
        # Many jobs sent at once have one time.
        store.write(
            [
                queued(job, at=NOON + n // 10, category=marker, queue=f"q{n % 3}")
                for n, job in enumerate(there)
            ]
        )
        query = Query(categories=[marker], states=states, limit=7)
        seen: list[str] = []
        for n in range(100):
            page = store.search(query)
            seen += ids(page)
            store.write(
                [
                    queued(f"{marker}-new-{n}", at=NOON + 99, category=marker),
                    queued(f"{marker}-late-{n}", at=NOON + 2, category=marker),
                ]
            )
            if page.next is None:
                break
            query.after = page.next
        kept = [job for job in seen if job in there]
        assert sorted(kept) == sorted(there)
        assert len(seen) == len(set(seen))


def test_pages_neither_repeat_nor_skip_while_another_thread_writes(store: Store) -> None:
    there = {f"old-{n}" for n in range(300)}
    store.write([queued(job) for job in sorted(there)])
    stop = threading.Event()

    def send() -> None:
        n = 0
        while not stop.is_set():
            store.write([queued(f"new-{n}-{m}", at=NOON + n) for m in range(20)])
            store.write([moved(f"old-{n % 300}", State.RUNNING)])
            n += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        seen = every_id(store, Query(until=NOON + 0.5, limit=23))
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert len(seen) == len(set(seen))
    assert there <= set(seen)


def test_a_page_has_as_many_records_as_asked_for_and_says_whether_there_are_more(store: Store) -> None:
    store.write([queued(f"{n}") for n in range(10)])
    exact = store.search(Query(limit=10))
    assert (len(exact.records), exact.next) == (10, None)
    short = store.search(Query(limit=9))
    assert (len(short.records), short.next is None) == (9, False)


def test_a_text_search_in_very_many_records_goes_on_page_by_page(store: Store) -> None:
    store.write([queued("needle", at=NOON - 1, payload="needle")])
    for first in range(0, 21_000, 3000):
        store.write([queued(f"hay-{n}", at=NOON + n) for n in range(first, first + 3000)])
    first_page = store.search(Query(text="needle"))
    assert (ids(first_page), first_page.next is None) == ([], False)
    assert every_id(store, Query(text="needle")) == ["needle"]


@pytest.mark.parametrize(
    "query", [Query(limit=0), Query(limit=1001), Query(after="no cursor"), Query(text="x" * 1001)]
)
def test_a_search_that_makes_no_sense_is_refused(store: Store, query: Query) -> None:
    with pytest.raises(InvalidQuery):
        store.search(query)


def test_jobs_are_counted_by_state(store: Store) -> None:
    assert store.count_by_state() == {}
    store.write([queued("a"), queued("b"), queued("c", category="reports"), moved("d", State.DEAD)])
    assert store.count_by_state() == {State.QUEUED: 3, State.DEAD: 1}
    assert store.count_by_state(category="email") == {State.QUEUED: 2}


# -- retention -------------------------------------------------------------------------------------------


def test_jobs_that_ended_long_ago_are_forgotten(store: Store) -> None:
    ended = (State.SUCCEEDED, State.CANCELLED, State.EXPIRED, State.DISCARDED)
    for state in State:
        store.write([queued(f"old-{state}", at=NOON, tags=("t",), event="sent")])
        store.write([queued(f"new-{state}", at=NOON, tags=("t",))])
        if state is not State.QUEUED:
            store.write([moved(f"old-{state}", state, hop=1, at=NOON + 1, finished_at=NOON + 1)])
            store.write([moved(f"new-{state}", state, hop=1, at=NOON + 9)])
    assert store.remove_ended(before=NOON + 5) == len(ended)
    left = set(every_id(store, Query(tags=["t"])))
    assert left == {f"{age}-{state}" for age in ("old", "new") for state in State} - {
        f"old-{state}" for state in ended
    }
    assert store.remove_ended(before=NOON + 5) == 0


def test_no_more_records_are_forgotten_than_was_said(store: Store) -> None:
    store.write([moved(f"{n}", State.SUCCEEDED, at=NOON) for n in range(1200)])
    assert store.remove_ended(before=NOON + 1, limit=700) == 700
    assert store.count_by_state() == {State.SUCCEEDED: 500}
    assert store.remove_ended(before=NOON + 1) == 500


def test_the_oldest_jobs_are_forgotten_first_whatever_they_were(store: Store) -> None:
    store.write(
        [
            moved(f"{n}", State.SUCCEEDED, at=NOON + 99, enqueued_at=NOON + n, queue=f"q{n % 3}")
            for n in range(600)
        ]
        + [moved("dead", State.DEAD, enqueued_at=NOON - 1), queued("waits", at=NOON - 1)]
    )
    assert store.remove_ended(before=NOON + 50) == 0, "they had only just ended"
    assert store.remove_ended(before=NOON + 700, limit=300) == 300
    assert set(every_id(store, Query(limit=1000))) == {f"{n}" for n in range(300, 600)} | {"dead", "waits"}


def test_jobs_that_took_long_do_not_keep_others_from_being_forgotten(store: Store) -> None:
    store.write([moved(f"long-{n}", State.SUCCEEDED, at=NOON + 99, enqueued_at=NOON) for n in range(600)])
    store.write([moved(f"{n}", State.SUCCEEDED, at=NOON + 2, enqueued_at=NOON + 1) for n in range(10)])
    assert store.remove_ended(before=NOON + 5, limit=10) == 10
    assert store.count_by_state() == {State.SUCCEEDED: 600}


def test_a_forgotten_job_can_be_recorded_anew(store: Store) -> None:
    store.write([moved("a", State.SUCCEEDED, worker="w", event="done")])
    assert store.remove_ended(before=NOON + 1) == 1
    assert store.get("a") is None
    store.write([queued("a")])
    record = read(store, "a")
    assert (record.state, record.worker, record.events) == (State.QUEUED, "", ())


# -- control ---------------------------------------------------------------------------------------------


def test_control_is_read_again_only_when_it_has_changed(store: Store) -> None:
    first = store.control()
    assert first is not None
    assert (first.paused, dict(first.cancelled)) == (frozenset(), {})
    assert store.control(known_version=first.version) is None

    store.pause("email.3")
    store.cancel("a", at=NOON + 1)
    second = store.control(known_version=first.version)
    assert second is not None
    assert (second.paused, dict(second.cancelled)) == (
        frozenset({"email.3"}),
        {"a": NOON + 1},
    )
    assert store.control(known_version=second.version) is None

    store.resume("email.3")
    store.forget_cancel("a")
    third = store.control(known_version=second.version)
    assert third is not None
    assert (third.paused, dict(third.cancelled)) == (frozenset(), {})
    assert len({first.version, second.version, third.version}) == 3


def test_asking_again_for_what_holds_already_changes_nothing(store: Store) -> None:
    store.pause("email.3")
    store.cancel("a", at=NOON)
    before = store.control()
    assert before is not None
    store.pause("email.3")
    store.cancel("a", at=NOON + 1)
    store.resume("other")
    store.forget_cancel("b")
    assert store.control(known_version=before.version) is None


def test_a_cancellation_is_seen_at_once_and_kept_for_four_hundred_days(store: Store, clock: Clock) -> None:
    store.cancel("a", at=NOON)
    assert store.is_cancelled("a")
    assert not store.is_cancelled("b")
    clock.now += 399 * 86_400
    assert store.is_cancelled("a")
    clock.now += 2 * 86_400
    assert not store.is_cancelled("a")
    control = store.control()
    assert control is not None
    assert dict(control.cancelled) == {}


# -- keys ------------------------------------------------------------------------------------------------


def test_a_key_belongs_to_the_first_who_claims_it(store: Store) -> None:
    assert store.claim_key("k", "one", ttl=10) == "one"
    assert store.claim_key("k", "two", ttl=10) == "one"
    assert store.key_owner("k") == "one"
    assert store.key_owner("other") is None


def test_a_key_is_free_when_its_time_is_over(store: Store, clock: Clock) -> None:
    store.claim_key("k", "one", ttl=10)
    clock.now += 9.5
    assert store.claim_key("k", "two", ttl=10) == "one"
    clock.now += 1
    assert store.key_owner("k") is None
    assert store.claim_key("k", "two", ttl=10) == "two"


def test_claiming_again_gives_the_owner_more_time(store: Store, clock: Clock) -> None:
    store.claim_key("k", "one", ttl=10, durable=False)
    clock.now += 9
    assert store.claim_key("k", "one", ttl=10, durable=False) == "one"
    clock.now += 9
    assert store.key_owner("k") == "one"


def test_only_its_owner_can_release_a_key(store: Store, clock: Clock) -> None:
    store.claim_key("k", "one", ttl=10)
    assert not store.release_key("k", "two")
    assert store.key_owner("k") == "one"
    assert store.release_key("k", "one")
    assert not store.release_key("k", "one")
    assert store.claim_key("k", "two", ttl=10) == "two"
    clock.now += 11
    assert not store.release_key("k", "two")


def _claim_all(open_store: Callable[[], Store], me: str, start: Any, wins: Connection) -> None:
    store = open_store()
    start.wait(PATIENCE)
    wins.send([n for n in range(100) if store.claim_key(f"key-{n}", me, ttl=60) == me])
    store.close()


def test_of_several_processes_exactly_one_gets_a_key(shared: Subject) -> None:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(3)
    claimers = []
    for n in range(3):
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_claim_all, args=(shared.open, f"process-{n}", start, sender))
        process.start()
        claimers.append((process, receiver))
    won: list[int] = []
    for process, receiver in claimers:
        assert receiver.poll(PATIENCE)
        won += receiver.recv()
        process.join(PATIENCE)
    assert sorted(won) == list(range(100))


# -- counters and numbers --------------------------------------------------------------------------------


def test_counters_add_up(store: Store) -> None:
    store.add("sent")
    store.add("sent", 4)
    store.add("sent.late", -1)
    store.add("lost", 2)
    assert store.counters() == {"lost": 2, "sent": 5, "sent.late": -1}
    assert store.counters("sent") == {"sent": 5, "sent.late": -1}
    assert store.counters("se_t") == {}


def test_dropped_records_are_counted_from_the_first_to_the_last(store: Store) -> None:
    store.report_dropped(3, since=NOON + 5.5, until=NOON + 9.5)
    store.report_dropped(4, since=NOON + 1.5, until=NOON + 2.5)
    assert store.counters("records.") == {
        "records.dropped": 7,
        "records.dropped_since": NOON + 1,
        "records.dropped_until": NOON + 9,
    }


def test_a_number_is_set_once(store: Store, clock: Clock) -> None:
    assert store.set_number("n", 3, ttl=10)
    assert not store.set_number("n", 5, ttl=10)
    assert store.has_number("n")
    clock.now += 11
    assert not store.has_number("n")
    assert store.set_number("n", 5, ttl=10)


def test_a_number_stays_within_its_bounds(store: Store, clock: Clock) -> None:
    assert store.move_number("n", 2, most=3, ttl=10)
    assert not store.move_number("n", 2, most=3, ttl=10)
    assert store.move_number("n", 1, most=3, ttl=10)
    assert not store.move_number("n", -4, least=0, ttl=10)
    assert store.move_number("n", -3, least=0, ttl=10)
    clock.now += 11
    assert not store.move_number("n", -1, least=0, ttl=10), "a number whose time is over is 0"


def test_a_number_can_be_bounded_together_with_others(store: Store) -> None:
    store.set_number("a", 3, ttl=10)
    store.set_number("b", 4, ttl=10)
    assert not store.move_number("a", 1, most=7, sum_with=["a", "b"], ttl=10)
    assert store.move_number("a", 1, most=8, sum_with=["b", "none"], ttl=10)


def test_threads_that_count_down_together_end_exactly_once(store: Store) -> None:
    store.set_number("barrier", 40, ttl=60)
    last: list[bool] = []

    def arrive() -> None:
        for _ in range(10):
            last.append(not store.move_number("barrier", -1, least=1, ttl=60))

    threads = [threading.Thread(target=arrive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (len(last), sum(last)) == (40, 1)


# -- heartbeats ------------------------------------------------------------------------------------------


def _heartbeat(worker: str, *, at: float, claimed: int = 0) -> Heartbeat:
    return Heartbeat(
        worker=worker,
        at=at,
        started_at=NOON,
        host="host",
        pid=7,
        queues=("email.1", "email.2"),
        threads=8,
        running=("a", "b"),
        claimed=claimed,
    )


def test_a_worker_is_alive_while_it_gives_signs_of_life(store: Store, clock: Clock) -> None:
    store.beat(_heartbeat("w2", at=clock.now))
    store.beat(_heartbeat("w1", at=clock.now))
    clock.now += 10
    store.beat(_heartbeat("w2", at=clock.now, claimed=3))
    assert store.workers() == [
        _heartbeat("w1", at=NOON),
        _heartbeat("w2", at=NOON + 10, claimed=3),
    ]
    assert [heartbeat.worker for heartbeat in store.workers(alive_within=5)] == ["w2"]
    store.stopped("w2")
    store.stopped("w2")
    assert [heartbeat.worker for heartbeat in store.workers()] == ["w1"]


# -- audit -----------------------------------------------------------------------------------------------


def test_the_audit_log_shows_the_newest_entries_first(store: Store) -> None:
    entries = [
        AuditEntry(at=NOON + n, actor="ada", action="discard", target=f"job {n}", count=n, details={"n": [n]})
        for n in range(5)
    ]
    for entry in entries:
        store.audit(entry)
    assert store.audit_log() == entries[::-1]
    assert store.audit_log(limit=2) == entries[:2:-1]
    assert store.audit_log(before=NOON + 2) == entries[1::-1]


# -- schedules -------------------------------------------------------------------------------------------


def missed(due: float, schedule: str = "sweep", **known: Any) -> Tick:
    return Tick(schedule=schedule, due=due, fate=Fate.MISSED, at=due + 1, **known)


def test_a_schedule_counts_from_its_beginning_and_can_begin_anew(store: Store) -> None:
    assert store.schedules() == {}
    store.begin_schedule("sweep", spec="0 3 * * *", until=NOON)
    assert store.schedules() == {"sweep": ScheduleState("sweep", "0 3 * * *", NOON)}
    store.add_tick(missed(NOON + 60), until=NOON + 60)
    store.begin_schedule("sweep", spec="0 4 * * *", until=NOON + 0.25)
    assert store.schedules() == {"sweep": ScheduleState("sweep", "0 4 * * *", NOON + 0.25)}


def test_a_schedule_is_paused_whether_it_was_served_or_not(store: Store) -> None:
    store.begin_schedule("sweep", spec="0 3 * * *", until=NOON)
    store.pause_schedule("sweep", at=NOON + 1.5, by="ada")
    store.pause_schedule("ring", at=NOON, by="ada")
    store.begin_schedule("ring", spec="0 0 * * *", until=NOON)
    assert store.schedules() == {
        "ring": ScheduleState("ring", "0 0 * * *", NOON, NOON, "ada"),
        "sweep": ScheduleState("sweep", "0 3 * * *", NOON, NOON + 1.5, "ada"),
    }
    store.pause_schedule("sweep", at=None)
    assert store.schedules()["sweep"] == ScheduleState("sweep", "0 3 * * *", NOON)


def test_what_became_of_a_tick_is_told_once(store: Store) -> None:
    store.begin_schedule("sweep", spec="0 3 * * *", until=NOON)
    first = missed(NOON + 60, reason="nobody was there", first=NOON + 1, count=3, by="host:7:f00")
    assert store.add_tick(first, until=NOON + 60)
    assert not store.add_tick(Tick(schedule="sweep", due=NOON + 60, fate=Fate.ON_TIME, at=NOON, job_id="x"))
    assert store.add_tick(missed(NOON + 60, "ring"))
    assert store.add_tick(missed(NOON + 0.125))
    assert store.ticks("sweep") == [first, missed(NOON + 0.125)]
    assert store.ticks("sweep", limit=1) == [first]
    assert store.ticks("ring") == [missed(NOON + 60, "ring")]
    assert store.ticks("other") == []


def test_up_to_when_ticks_are_dealt_with_only_grows(store: Store) -> None:
    store.begin_schedule("sweep", spec="0 3 * * *", until=NOON)
    store.add_tick(missed(NOON + 60))
    assert store.schedules()["sweep"].until == NOON
    store.add_tick(missed(NOON + 120), until=NOON + 120)
    store.add_tick(missed(NOON + 90), until=NOON + 90)
    store.add_tick(missed(NOON + 60), until=NOON + 180)  # known, but what it says of others is news
    assert store.schedules()["sweep"].until == NOON + 180


def test_of_each_schedule_the_newest_ticks_are_kept(store: Store) -> None:
    for number in range(TICKS_KEPT + 3):
        store.add_tick(missed(NOON + number))
    store.add_tick(missed(NOON, "ring"))
    kept = store.ticks("sweep", limit=TICKS_KEPT + 10)
    assert [tick.due for tick in kept] == [NOON + number for number in reversed(range(3, TICKS_KEPT + 3))]
    assert len(store.ticks("ring")) == 1


# -- results ---------------------------------------------------------------------------------------------


def test_a_result_is_kept_for_its_time(store: Store, clock: Clock) -> None:
    store.put_result("r", b"\x00one", ttl=10)
    store.put_result("r", b"\xfftwo", ttl=10)
    assert store.get_result("r") == b"\xfftwo"
    assert store.get_result("none") is None
    clock.now += 11
    assert store.get_result("r") is None


def test_a_result_can_be_removed(store: Store) -> None:
    store.put_result("r", b"one", ttl=10)
    store.put_result("other", b"two", ttl=10)
    store.remove_result("r")
    store.remove_result("none")
    assert store.get_result("r") is None
    assert store.get_result("other") == b"two"


def test_what_has_expired_is_swept_away_and_what_lives_stays(store: Store, clock: Clock) -> None:
    store.put_result("short", b"1", ttl=10)
    store.put_result("long", b"2", ttl=1000)
    clock.now += 500
    store.put_result("later", b"3", ttl=10)
    assert [store.get_result(key) for key in ("short", "long", "later")] == [None, b"2", b"3"]


# -- life ------------------------------------------------------------------------------------------------


def test_a_store_can_be_closed_twice_and_is_gone_then(store: Store) -> None:
    store.write([queued("a")])
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.get("a")
    with pytest.raises(StoreUnavailable, match="closed"):
        store.add("sent")


def test_threads_read_and_write_together(store: Store) -> None:
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for n in range(30):
                store.write([queued(f"{name}-{n}"), moved(f"{name}-{n}", State.RUNNING)])
                assert read(store, f"{name}-{n}").state is State.RUNNING
                store.search(Query(states=[State.RUNNING]))
                store.add("done")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert store.counters() == {"done": 180}
    assert store.count_by_state() == {State.RUNNING: 180}


def test_what_one_store_writes_another_on_the_same_records_reads(shared: Subject) -> None:
    one, two = shared.store(), shared.store()
    one.write([queued("a")])
    assert read(two, "a").state is State.QUEUED
    two.write([moved("a", State.RUNNING)])
    assert read(one, "a").state is State.RUNNING


def _write_for_ever(open_store: Callable[[], Store], name: str, written: Connection) -> None:
    store = open_store()
    for n in range(1_000_000):
        jobs = [f"{name}-{n}-{m}" for m in range(50)]
        store.write([queued(job, event="sent", tags=("t",)) for job in jobs])
        store.write([moved(job, State.SUCCEEDED) for job in jobs])
        written.send(n)


def test_a_writer_that_is_killed_leaves_a_store_with_all_that_was_written(shared: Subject) -> None:
    spawn = multiprocessing.get_context("spawn")
    for run in range(3):
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_write_for_ever, args=(shared.open, f"run{run}", sender))
        process.start()
        sender.close()
        last = -1
        while last < 5 + 3 * run:
            assert receiver.poll(PATIENCE)
            last = receiver.recv()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE)
        with suppress(EOFError):
            while receiver.poll(0):
                last = receiver.recv()

        store = shared.store()
        assert read(store, f"run{run}-{last}-49").state is State.SUCCEEDED
        counts = store.count_by_state()
        assert counts[State.SUCCEEDED] >= (last + 1) * 50
        assert all(count % 50 == 0 for count in counts.values()), "half a batch was written"
        assert len(every_id(store, Query(limit=1000))) == sum(counts.values())
        store.write([queued(f"run{run}-after-{n}") for n in range(50)])
        store.close()


# -- the recorder ----------------------------------------------------------------------------------------


def test_a_recorder_says_in_the_store_how_many_records_it_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    away.set()
    tried = threading.Event()
    write = store.write

    def fail(changes: Any) -> None:
        if away.is_set():
            tried.set()
            raise StoreUnavailable("away")
        write(changes)

    monkeypatch.setattr(store, "write", fail)
    recorder = Recorder(store, max_pending=100, batch=10, interval=0)
    try:
        recorder.record(queued("first", at=NOON))
        assert tried.wait(PATIENCE)
        for n in range(150):
            recorder.record(queued(f"{n}", at=NOON + 1 + n))
        assert recorder.dropped >= 40
        away.clear()
        assert recorder.flush(PATIENCE)
    finally:
        recorder.close()
    counters = store.counters("records.")
    assert counters["records.dropped"] == recorder.dropped
    assert counters["records.dropped_since"] == NOON + 1
    assert sum(store.count_by_state().values()) == 151 - recorder.dropped
    assert store.get("149") is not None, "the oldest are dropped"
