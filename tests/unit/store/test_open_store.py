from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from callboard.errors import SettingsError
from callboard.store import open_store
from callboard.store.redis import RedisStore
from callboard.store.sqlite import SQLiteStore


@pytest.mark.parametrize(
    ("url", "namespace", "path"),
    [
        ("file:var", "", Path.cwd() / "var/store.db"),
        ("file:var", "shop", Path.cwd() / "var/store-shop.db"),
        ("file:/srv/var", "", Path("/srv/var/store.db")),
        ("file:///srv/var", "", Path("/srv/var/store.db")),
        ("memory:", "shop", None),
    ],
)
def test_a_url_names_a_store(url: str, namespace: str, path: Path | None) -> None:
    store = open_store(url, namespace)
    assert isinstance(store, SQLiteStore)
    assert store.path == path
    store.close()


def test_naming_a_store_touches_no_disk(tmp_path: Path) -> None:
    open_store(f"file:{tmp_path}/var").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "explanation"),
    [
        (
            "postgresql://ada:secret@localhost/jobs",
            r"no kind of store for 'postgresql://\*\*\*@localhost/jobs'",
        ),
        ("var/store.db", "no kind of store"),
        ("", "no kind of store"),
        ("file:", "names no folder"),
        ("file://host/var", "names no folder"),
    ],
)
def test_an_unknown_store_is_refused_with_those_that_are_known(url: str, explanation: str) -> None:
    with pytest.raises(SettingsError, match=explanation) as refusal:
        open_store(url)
    assert "file:FOLDER" in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["redis://localhost/1", "rediss://ann:secret@redis.example.org/1", "unix:///run/redis.sock"]
)
def test_a_store_in_redis_is_named_without_a_connection(url: str) -> None:
    store = open_store(url, "shop")
    assert isinstance(store, RedisStore)
    assert store.path is None
    assert "secret" not in repr(store)
    store.close()


def test_a_url_of_redis_that_cannot_be_read_is_refused_without_its_password() -> None:
    with pytest.raises(SettingsError, match="the store's URL can't be read") as refusal:
        open_store("redis://ann:secret@localhost:port/1")
    assert "secret" not in str(refusal.value)


def test_every_store_in_memory_is_a_new_one() -> None:
    one, two = open_store("memory:"), open_store("memory:")
    one.add("sent")
    assert two.counters() == {}
    one.close()
    two.close()


def test_importing_the_store_does_not_import_its_implementation() -> None:
    script = "import sys, callboard.store; sys.exit({'sqlite3', 'redis'} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
