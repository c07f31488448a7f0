"""What a Redis URL says, and what is said of it: never the password."""

from __future__ import annotations

import pytest
import redis.exceptions

from callboard.brokers import open_driver
from callboard.brokers.redis import RedisDriver
from callboard.errors import SettingsError
from callboard.redis.address import parse
from callboard.redis.outage import refused, unreachable


def test_a_url_names_host_port_database_user_and_password() -> None:
    found = parse("redis://ann:s%40crt@queue.example.org:7000/3")
    assert (found.host, found.port, found.db) == ("queue.example.org", 7000, 3)
    assert (found.user, found.password) == ("ann", "s@crt")
    assert str(found) == "queue.example.org:7000 (db 3)"


def test_what_a_url_leaves_out_is_redis_own_default() -> None:
    found = parse("redis://")
    assert (found.host, found.port, found.db, found.user, found.password) == ("localhost", 6379, 0, "", "")


def test_a_url_may_name_a_socket() -> None:
    found = parse("unix:///run/redis.sock?db=2")
    assert (found.path, found.db) == ("/run/redis.sock", 2)
    assert str(found) == "/run/redis.sock (db 2)"


def test_a_url_may_name_the_files_of_tls() -> None:
    found = parse("rediss://host?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/etc/us.pem")
    assert dict(found.tls_files) == {"ssl_ca_certs": "/etc/ca.pem", "ssl_certfile": "/etc/us.pem"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://host?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
        ("redis://host/jobs", "'/jobs' in the broker's URL is no database's number"),
        ("redis://host:seven", "its form is redis://"),
        ("redis://ann:secret/word@host:6379", "write '/', '@' and ':' in a password as"),
        ("redis://ann:1/secret@host:6379", "write '/', '@' and ':' in a password as"),
        ("unix://", "names no socket"),
        ("redis://host?db=one", "its form is redis://"),
    ],
)
def test_a_wrong_url_is_refused_with_a_sentence(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r".") as caught:
        parse(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_text_of_an_address_shows_the_password() -> None:
    found = parse("redis://ann:secret@host")
    assert "secret" not in f"{found} {found!r}"


@pytest.mark.parametrize("scheme", ["redis://localhost", "rediss://localhost", "unix:///run/redis.sock"])
def test_a_redis_url_opens_the_redis_driver(scheme: str) -> None:
    driver = open_driver(scheme)
    assert isinstance(driver, RedisDriver)
    assert driver.networked
    assert driver.claims_are_leases


@pytest.mark.parametrize(
    ("error", "passing", "said"),
    [
        (redis.exceptions.BusyLoadingError("Redis is loading"), True, "can't do it just now"),
        (redis.exceptions.ReadOnlyError("You can't write"), True, "can't do it just now"),
        (redis.exceptions.ResponseError("BUSY a script runs"), True, "can't do it just now"),
        (redis.exceptions.ResponseError("WRONGPASS invalid"), False, "check the user and password"),
        (redis.exceptions.AuthenticationError("Authentication required."), False, "check the user and"),
        (redis.exceptions.NoPermissionError("no permission"), False, "grant the user"),
        (redis.exceptions.OutOfMemoryError("command not allowed"), False, "'maxmemory'"),
        (redis.exceptions.ResponseError("MISCONF errors"), False, "see its log"),
        (redis.exceptions.ResponseError("WRONGTYPE of key"), False, "refuses: WRONGTYPE of key"),
    ],
)
def test_an_error_that_redis_answers_becomes_one_sentence(error: Exception, passing: bool, said: str) -> None:
    assert isinstance(error, redis.exceptions.RedisError)
    found = refused(error, parse("redis://ann:secret@host"))
    assert found.passing is passing
    assert said in str(found)
    assert "host:6379" in str(found)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.exceptions.ConnectionError("Error 111 connecting. Connection refused."), "is it running?"),
        (redis.exceptions.TimeoutError("Timeout reading from socket"), "it doesn't answer"),
        (redis.exceptions.ConnectionError("Connection closed by server."), "it closed the connection"),
        (OSError("something else"), "something else"),
    ],
)
def test_a_failing_connection_becomes_one_sentence(error: Exception, said: str) -> None:
    assert str(unreachable(error, parse("redis://host"), sent=True)).endswith(said)
