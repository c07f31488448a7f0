from __future__ import annotations

import pytest

from callboard.errors import SettingsError
from callboard.settings import Settings


def test_development_takes_plain_urls() -> None:
    assert Settings.load(broker_url="amqp://ann:secret@queue.test/shop").environment == "development"


@pytest.mark.parametrize(
    ("setting", "url", "host"),
    [
        ("broker_url", "amqp://ann:secret@queue.test/shop", "queue.test"),
        ("broker_url", "amqp://ann:secret@127.0.0.1,10.0.0.7:5673/shop", "10.0.0.7"),
        ("broker_url", "amqps://ann:secret@one.test/shop;amqp://ann:secret@two.test/shop", "two.test"),
        ("broker_url", "redis://ann:secret@[2001:db8::1]:6379/0", "2001:db8::1"),
        ("store_url", "redis://keys.test:6379/0", "keys.test"),
    ],
)
def test_production_refuses_to_send_in_clear_and_shows_no_password(setting: str, url: str, host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environment="production", **{setting: url})
    said = str(caught.value)
    assert said.startswith(f"CALLBOARD_{setting.upper()}: in production, ")
    assert f"in clear to '{host}'" in said
    assert "CALLBOARD_ALLOW_PLAINTEXT=1" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "amqps://ann:secret@queue.test/shop",
        "rediss://keys.test:6379/0",
        "unix:///run/redis.sock",
        "file:var",
        "amqp://ann:secret@localhost:5672/shop",
        "amqp://127.0.0.1:5672,[::1]:5673/shop;amqp://127.0.0.2/shop",
        "redis://127.0.0.1:6379/0",
    ],
)
def test_production_takes_what_is_encrypted_or_stays_on_the_host(url: str) -> None:
    assert Settings.load(environment="production", broker_url=url).broker_url == url


def test_production_sends_in_clear_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_ENVIRONMENT", "production")
    monkeypatch.setenv("CALLBOARD_STORE_URL", "redis://keys.test/0")
    with pytest.raises(SettingsError):
        Settings.load()
    monkeypatch.setenv("CALLBOARD_ALLOW_PLAINTEXT", "1")
    assert Settings.load().store_url == "redis://keys.test/0"


def test_a_wrong_environment_is_named() -> None:
    with pytest.raises(SettingsError, match="CALLBOARD_ENVIRONMENT"):
        Settings.load(environment="prod")
