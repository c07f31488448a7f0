"""The Redis store against a real server: what the suite of stores can't ask of every store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
import structlog

from callboard.errors import StoreUnavailable
from callboard.servers import PrivateRedis
from callboard.states import State, order
from callboard.store.base import Change, Control, Query
from callboard.store.control import ControlWatch
from callboard.store.recorder import Recorder
from callboard.store.redis import RedisStore
from tests.closing import closing_all
from tests.patience import until

PATIENCE = 30.0
NOON = 1_700_000_000.0

Open = Callable[..., RedisStore]


@pytest.fixture
def open_store(redis_url: str) -> Iterator[Open]:
    """Opens stores that are closed at the end."""
    with closing_all(RedisStore) as open_one:
        yield lambda url=redis_url, **options: open_one(url, **options)


@pytest.fixture
def store(open_store: Open) -> RedisStore:
    return open_store()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """Somebody else's connection; what it has set is put back."""
    client = redis.Redis.from_url(redis_url, protocol=2)
    yield client
    for name, value in {"maxmemory": "0", "maxmemory-policy": "noeviction"}.items():
        client.config_set(name, value)
    client.close()


def job(job_id: str, state: State = State.QUEUED, **known: Any) -> Change:
    said: dict[str, Any] = {"actor": "send-email", "category": "email", "queue": "email.3"}
    said |= {"enqueued_at": NOON, **known}
    return Change(job_id=job_id, order=order(0, state), state=state, at=NOON, **said)


def found(store: RedisStore, **conditions: Any) -> list[str]:
    """The ids of all pages."""
    ids, after = [], None
    while True:
        page = store.search(Query(after=after, **conditions))
        ids += [record.job_id for record in page.records]
        if page.next is None:
            return ids
        after = page.next


# -- keys


def test_all_keys_of_a_namespace_lie_in_one_slot_and_below_the_stores_own_prefix(
    open_store: Open, server: Any
) -> None:
    store = open_store(namespace="shop")
    store.write([job("a", tags=("t",), fingerprint="f")])
    store.pause("email.3")
    store.cancel("a", at=time.time())
    store.claim_key("k", "me", ttl=10)
    store.set_number("n", 1, ttl=10)
    store.put_result("r", b"1", ttl=10)
    store.add("sent")
    keys = {key.decode() for key in server.keys("*")}
    assert len(keys) > 8
    assert {key for key in keys if not key.startswith("callboard:{shop}:store:")} == set()


def test_apps_with_different_namespaces_share_nothing(open_store: Open) -> None:
    one, two = open_store(namespace="one"), open_store(namespace="two")
    one.write([job("a", tags=("t",))])
    one.pause("email.3")
    assert one.claim_key("k", "me", ttl=10) == "me"
    assert two.get("a") is None
    assert found(two, tags=["t"]) == []
    control = two.control()
    assert control is not None
    assert control.paused == frozenset()
    assert two.claim_key("k", "you", ttl=10) == "you"


def test_forgotten_jobs_leave_no_key_behind(store: RedisStore, server: Any) -> None:
    store.write([job(f"{n}", tags=("a", f"b{n}"), event="sent", payload="{}") for n in range(20)])
    store.write([job(f"{n}", State.RUNNING, tags=("a", f"c{n}"), event="started") for n in range(20)])
    store.write([job(f"{n}", State.DEAD, fingerprint=f"f{n}", tags=()) for n in range(0, 20, 2)])
    store.write([job(f"{n}", State.DISCARDED, fingerprint="g", event="gone") for n in range(20)])
    assert store.count_by_state() == {State.DISCARDED: 20}
    assert store.remove_ended(before=NOON + 1) == 20
    assert server.keys("*") == []


def test_what_has_expired_is_thrown_away_by_redis_itself(store: RedisStore, server: Any) -> None:
    store.claim_key("k", "me", ttl=10)
    store.set_number("n", 1, ttl=10)
    store.put_result("r", b"1", ttl=10)
    lives = [server.pttl(key) for key in server.keys("*")]
    assert len(lives) == 3
    assert all(0 < life <= 70_000 for life in lives)


def test_times_to_live_go_by_the_clock_of_redis(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    store.claim_key("k", "me", ttl=3600)
    ahead = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: ahead)  # this host's clock is two hours ahead
    assert store.claim_key("k", "you", ttl=3600) == "me"
    store.put_result("r", b"1", ttl=0.0)
    assert store.get_result("r") is None


def test_the_audit_keeps_so_many_entries(
    store: RedisStore, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callboard.store.base import AuditEntry
    from callboard.store.redis import store as module

    monkeypatch.setattr(module, "_AUDIT_KEPT", 5)
    for n in range(8):
        store.audit(AuditEntry(at=NOON, actor="ada", action="purge", target=f"q{n}"))
    assert [entry.target for entry in store.audit_log()] == ["q7", "q6", "q5", "q4", "q3"]


# -- records


def test_jobs_of_one_moment_are_paged_whatever_their_ids_and_kinds(store: RedisStore) -> None:
    ids = [f"{letter}{n}" for letter in "aBcD_.:-z" for n in range(12)]
    store.write([job(id_, queue=f"q{n % 5}", actor=f"a{n % 3}") for n, id_ in enumerate(ids)])
    for conditions in ({}, {"states": [State.QUEUED]}, {"queues": ["q1", "q2"]}, {"actors": ["a0"]}):
        for limit in (1, 7, 1000):
            seen = found(store, limit=limit, **conditions)
            assert len(seen) == len(set(seen))
            assert seen == sorted(seen, reverse=True)  # by bytes, whatever the server's language
        assert conditions or sorted(seen) == sorted(ids)


def test_a_batch_that_is_written_again_tells_nothing_twice(store: RedisStore) -> None:
    batch = [job("a", event="sent"), job("a", State.RUNNING, event="started")]
    store.write(batch)
    store.write(batch)
    record = store.get("a")
    assert record is not None
    assert [event.text for event in record.events] == ["sent", "started"]


def test_a_field_of_a_newer_version_is_left_alone(store: RedisStore, server: Any) -> None:
    store.write([job("a")])
    newer = [1, "queued", NOON, NOON, [0, 1, "send-email", 99, 1, "unheard of"], []]
    server.hset("callboard:{.}:store:records", "a", msgspec.msgpack.encode(newer))
    store.write([job("a", State.DEAD, error="no route", fingerprint="f1")])
    record = store.get("a")
    assert record is not None
    assert (record.actor, record.error, record.state) == ("send-email", "no route", State.DEAD)
    assert found(store, fingerprint="f1") == ["a"]
    kept = msgspec.msgpack.decode(server.hget("callboard:{.}:store:records", "a"))
    assert "unheard of" in kept[4]


# -- control


def test_a_change_of_control_is_told_at_once(open_store: Open) -> None:
    asking, watching = open_store(), open_store()
    seen: list[frozenset[str]] = []
    told = threading.Event()

    def tell(control: Control) -> None:
        seen.append(control.paused)
        told.set()

    # It looks by itself so seldom that only the push can be what tells.
    watch = ControlWatch(watching, interval=10 * PATIENCE, on_change=tell)
    watch.start()
    try:
        _until_subscribed(watching)
        told.clear()
        asking.pause("email.3")
        assert told.wait(PATIENCE)
        assert seen[-1] == {"email.3"}
        told.clear()
        asking.cancel("job", at=time.time())
        assert told.wait(PATIENCE)
        assert set(watch.cancelled) == {"job"}
        told.clear()
        asking.resume("email.3")
        assert told.wait(PATIENCE)
        assert seen[-1] == frozenset()
    finally:
        watch.stop()


def test_a_watch_that_waits_stops_at_once(open_store: Open) -> None:
    watch = ControlWatch(open_store(), interval=10 * PATIENCE)
    watch.start()
    started = time.monotonic()
    watch.stop()
    assert time.monotonic() - started < PATIENCE


def test_a_watch_whose_subscription_is_lost_looks_by_itself_and_subscribes_again(
    open_store: Open, server: Any
) -> None:
    asking, watching = open_store(), open_store()
    watch = ControlWatch(watching, interval=0.05)
    watch.start()
    try:
        _until_subscribed(watching)
        server.client_kill_filter(_type="pubsub")
        asking.pause("email.3")
        until(lambda: watch.paused == {"email.3"})
        _until_subscribed(watching)
    finally:
        watch.stop()


def test_a_redis_that_was_emptied_asks_nothing_any_more(store: RedisStore, server: Any) -> None:
    store.pause("email.3")
    control = store.control()
    assert control is not None
    server.flushall()
    emptied = store.control(known_version=control.version)
    assert emptied is not None
    assert emptied.paused == frozenset()
    store.pause("email.2")
    again = store.control(known_version=emptied.version)
    assert again is not None
    assert again.version != control.version


def _until_subscribed(store: RedisStore) -> None:
    channel = f"{store._base}control"
    until(lambda: store._ask("PUBSUB", "SHARDNUMSUB", channel)[1] > 0)


# -- what a Redis has to be


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_may_evict_what_it_is_told_is_refused(
    open_store: Open, server: Any, policy: str
) -> None:
    server.config_set("maxmemory", "100mb")
    server.config_set("maxmemory-policy", policy)
    with pytest.raises(
        StoreUnavailable,
        match=rf"may evict what is known about jobs .*{policy}.*set maxmemory-policy to noeviction",
    ):
        open_store().get("a")


def test_a_redis_that_writes_nothing_down_is_warned_of_once(
    open_store: Open, own_redis: PrivateRedis
) -> None:
    store = open_store()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            store.add("sent")
            store._links.close()
            store._links._closed = False
    assert [entry["event"] for entry in logs] == ["redis_keeps_nothing"]
    with structlog.testing.capture_logs() as logs:
        open_store(own_redis.url).add("sent")
    assert logs == []


def test_a_user_with_few_permissions_can_do_everything(open_store: Open, server: Any, redis_url: str) -> None:
    server.execute_command(
        "ACL SETUSER callboard reset on >secret ~callboard:* &callboard:* "
        "+@read +@write +@scripting +@pubsub +@connection +info +time -@dangerous"
    )
    try:
        store = open_store(redis_url.replace("//", "//callboard:secret@"))
        store.write([job("a", tags=("t",))])
        assert found(store, tags=["t"]) == ["a"]
        bell = store.control_bell()
        bell.wait(0.01)
        store.pause("email.3")
        bell.close()
        store.claim_key("k", "me", ttl=10)
        assert store.workers() == []
    finally:
        server.execute_command("ACL DELUSER callboard")


# -- what can happen to it


def test_out_of_memory_refuses_records_and_lets_through_what_steers_and_makes_room(
    store: RedisStore, server: Any
) -> None:
    store.write([job("a", State.SUCCEEDED)])
    server.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="used all the memory that 'maxmemory' allows: give it more"):
        store.write([job("b")])
    store.pause("email.3")
    assert store.get("a") is not None
    assert found(store) == ["a"]
    assert store.claim_key("k", "me", ttl=10) == "me"
    assert store.remove_ended(before=NOON + 1) == 1
    server.config_set("maxmemory", "0")
    store.write([job("b")])


def test_a_redis_that_takes_no_changes_still_answers(store: RedisStore, redis_server: PrivateRedis) -> None:
    store.write([job("a", tags=("t",))])
    store.pause("email.3")
    with redis_server.read_only():
        with pytest.raises(StoreUnavailable, match="can't do it just now"):
            store.write([job("b")])
        assert found(store, tags=["t"], text="") == ["a"]
        assert store.count_by_state() == {State.QUEUED: 1}
        control = store.control()
        assert control is not None
        assert control.paused == {"email.3"}
    store.write([job("b")])


def test_a_redis_that_forgets_its_scripts_is_told_them_again(store: RedisStore, server: Any) -> None:
    store.write([job("a")])
    server.script_flush()
    store.write([job("b")])
    server.script_flush()
    assert found(store) == ["b", "a"]


def test_connections_that_were_closed_meanwhile_are_opened_again_unseen(
    store: RedisStore, server: Any
) -> None:
    store.add("sent")
    for _ in range(5):
        server.client_kill_filter(_type="normal", skipme=True)
        store.add("sent")  # it isn't known whether adding was done, so it must not be tried twice
    assert store.counters() == {"sent": 6}


def test_a_redis_that_stands_still_costs_one_call_its_patience_and_the_others_nothing(
    open_store: Open, own_redis: PrivateRedis
) -> None:
    store = open_store(own_redis.url)
    store.add("sent")
    store._links._patience = 0.5
    with own_redis.frozen():
        with pytest.raises(StoreUnavailable, match="it doesn't answer"):
            store.get("a")
        store._links._away_until += PATIENCE  # the next attempt isn't due yet
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreUnavailable, match="it doesn't answer"):
                store.get("a")
        assert time.monotonic() - started < 100 * 0.5 / 2
        store._links._away_until = 0.0
    store._links._patience = PATIENCE
    assert store.counters() == {"sent": 1}


def test_a_forked_child_uses_connections_of_its_own(store: RedisStore) -> None:
    store.write([job("a")])
    pid = os.fork()
    if pid == 0:
        try:
            store.write([job("child")])
            os._exit(0 if store.get("a") is not None else 3)
        finally:
            os._exit(4)
    for n in range(50):
        store.write([job(f"parent-{n}")])
        assert store.get(f"parent-{n}") is not None
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.get("child") is not None


# -- killed


def test_a_killed_redis_is_told_of_in_a_sentence_and_used_again_when_it_is_back(
    open_store: Open, own_redis: PrivateRedis
) -> None:
    store = open_store(own_redis.url)
    store.write([job("a")])
    watch = ControlWatch(open_store(own_redis.url), interval=0.05)
    watch.start()
    try:
        own_redis.kill()
        with pytest.raises(
            StoreUnavailable, match=r"^the store can't be reached: Redis at .*\(db 0\) is away: "
        ):
            store.get("a")
        until(lambda: not watch.is_current)
        own_redis.start()
        until(lambda: watch.is_current)
        until(lambda: _answers(store))
        store.pause("email.3")
        until(lambda: watch.paused == {"email.3"})
    finally:
        watch.stop()


def _answers(store: RedisStore) -> bool:
    try:
        store.counters()
    except StoreUnavailable:
        return False
    return True


def test_while_redis_is_away_records_wait_the_oldest_are_dropped_and_the_store_is_told(
    open_store: Open, own_redis: PrivateRedis
) -> None:
    store = open_store(own_redis.url)
    recorder = Recorder(store, max_pending=100, batch=10, interval=0)
    try:
        recorder.record(job("first"))
        assert recorder.flush(PATIENCE)
        own_redis.kill()
        for n in range(300):
            recorder.record(job(f"{n}"))
        dropped = recorder.dropped
        assert 0 < dropped < 300
        own_redis.start()
        assert recorder.flush(PATIENCE)
    finally:
        recorder.close()
    assert store.counters("records.dropped")["records.dropped"] == recorder.dropped
    assert sum(store.count_by_state().values()) == 301 - recorder.dropped
    assert store.get("299") is not None
