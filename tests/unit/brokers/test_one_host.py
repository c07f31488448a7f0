"""Other hosts that can reach the messages have to reach the store as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.client import Client
from callboard.errors import SettingsError
from callboard.store import open_store

NETWORKED = ["amqp://queue.example.org/", "redis://queue.example.org/0"]


@pytest.mark.parametrize("url", NETWORKED)
def test_a_networked_broker_refuses_a_store_in_a_file_and_says_both_ways_out(
    url: str, tmp_path: Path
) -> None:
    store = open_store(f"file:{tmp_path}")
    with pytest.raises(SettingsError, match=r"CALLBOARD_STORE_URL=redis://HOST, or CALLBOARD_ONE_HOST=1"):
        Broker(open_driver(url), store=store)
    with pytest.raises(SettingsError, match=f"a file on this one .{tmp_path}"):
        Client.open(url, store_url=f"file:{tmp_path}")


@pytest.mark.parametrize("url", NETWORKED)
def test_on_one_host_a_networked_broker_takes_a_store_in_a_file(url: str, tmp_path: Path) -> None:
    store = open_store(f"file:{tmp_path}")
    Broker(open_driver(url), store=store, one_host=True).close()
    Client.open(url, store_url=f"file:{tmp_path}", one_host=True).close()


@pytest.mark.parametrize("url", NETWORKED)
@pytest.mark.parametrize("store_url", ["redis://queue.example.org/0", "memory:", None])
def test_a_networked_broker_takes_any_other_store_or_none(url: str, store_url: str | None) -> None:
    Client.open(url, store_url=store_url).close()


def test_a_broker_in_a_file_takes_any_store(tmp_path: Path) -> None:
    for store_url in (f"file:{tmp_path}", "redis://queue.example.org/0"):
        Client.open(f"file:{tmp_path}", store_url=store_url).close()
