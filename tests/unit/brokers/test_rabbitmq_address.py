from __future__ import annotations

import pytest

from callboard.brokers.rabbitmq.address import Address, parse
from callboard.errors import SettingsError


def test_a_bare_url_means_the_usual_port_user_and_vhost() -> None:
    (address,) = parse("amqp://broker.example.org")
    expected = ("broker.example.org", 5672, "/", "guest", "guest")
    assert (address.host, address.port, address.vhost, address.user, address.password) == expected


def test_every_part_of_a_url_is_read() -> None:
    (address,) = parse("amqp://ada:s%2Fe%40c@one:5673/my%2Fvhost?heartbeat=10")
    assert address == Address("one", 5673, "my/vhost", "ada", "s/e@c", heartbeat=10)


def test_an_ipv6_address_is_a_host() -> None:
    (address,) = parse("amqp://[::1]:5673/")
    assert (address.host, address.port) == ("::1", 5673)
    assert str(address) == "[::1]:5673 (vhost '/')"


@pytest.mark.parametrize(
    "url",
    [
        "amqp://ada:x@one,two:5673/v",
        "amqp://ada:x@one;two:5673/v",
        "amqp://ada:x@one/v;amqp://ada:x@two:5673/v",
        "amqp://ada:x@one/v, amqp://ada:x@two:5673/v",
    ],
)
def test_several_hosts_are_tried_in_their_order(url: str) -> None:
    assert parse(url) == (Address("one", 5672, "v", "ada", "x"), Address("two", 5673, "v", "ada", "x"))


def test_amqps_verifies_the_server_under_its_name() -> None:
    (address,) = parse("amqps://one")
    assert address.port == 5671
    options = address.parameters("test").ssl_options
    assert options.context.check_hostname
    assert options.context.verify_mode.name == "CERT_REQUIRED"
    assert options.server_hostname == "one"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://one", "'http:' is no RabbitMQ URL"),
        ("amqp://ada:secret@one:port/v", "wrong host 'one:port'"),
        ("amqp:ada:secret@one", "names no host"),
        ("amqp:/ada:secret@one/v", "names no host"),
        ("amqp://ada:secret#1@one/v", "as %2F, %3F, %23 and %40"),
        ("amqp://ada:secret/1@one/v", "as %2F, %3F, %23 and %40"),
        ("amqp://ada:1/secret@one/v", "as %2F, %3F, %23 and %40"),
        ("amqp://ada:secret@one/v?heartbeats=3", "unknown option 'heartbeats'"),
        ("amqp://ada:secret@one/v?heartbeat=1", "whole seconds from 4 to 600"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_the_password(url: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_neither_the_text_nor_the_representation_shows_the_password() -> None:
    (address,) = parse("amqp://ada:secret@one/v")
    assert "secret" not in f"{address} {address!r}"
    assert str(address) == "one:5672 (vhost 'v')"
