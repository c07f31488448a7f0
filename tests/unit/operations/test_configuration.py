"""Settings as they are shown: where each comes from, and no secrets."""

from __future__ import annotations

import pytest
from pydantic import Field, SecretStr

from callboard.operations.configuration import masked, settings_report, strays
from callboard.settings import CallboardSettings, Settings

PASSWORD = "geheim!1"


class _Shop(CallboardSettings):
    """The settings of a service."""

    shop_url: str = Field("", description="Where it is.")
    shop_mirror: SecretStr | None = Field(None, description="A URL with a password in it.")
    shop_api_key: str = Field("", description="What opens it.")
    shop_options: dict[str, str] = Field(default_factory=dict, description="More.")


def test_every_setting_tells_where_its_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_SEND_DEADLINE", "7.5")
    monkeypatch.setenv("CALLBOARD_NAMESPACE", "")  # empty is not given

    report = {s.variable: s for s in settings_report({"callboard_send_deadline": "7.5"}, [Settings, _Shop])}

    deadline = report["CALLBOARD_SEND_DEADLINE"]
    assert (deadline.value, deadline.source, deadline.default) == (7.5, "environment", 5.0)
    assert report["CALLBOARD_NAMESPACE"].source == "default"
    assert report["CALLBOARD_SHOP_URL"].belongs_to == _Shop.__module__
    assert report["CALLBOARD_BROKER_URL"].belongs_to == "callboard"
    assert len(report) == len(Settings.model_fields) + len(_Shop.model_fields)


def test_secrets_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "CALLBOARD_BROKER_URL": f"amqp://ada:{PASSWORD}@queue.example.org/app",
        "CALLBOARD_SIGNING_KEYS": f"k1:{PASSWORD}{PASSWORD}",
        "CALLBOARD_SHOP_URL": f"https://shop.example.org/?token={PASSWORD}&page=2",
        "CALLBOARD_SHOP_MIRROR": f"https://ada:{PASSWORD}@mirror.example.org",
        "CALLBOARD_SHOP_API_KEY": PASSWORD,
        "CALLBOARD_SHOP_OPTIONS": f'{{"password": "{PASSWORD}", "colour": "red"}}',
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    report = {s.variable: s.value for s in settings_report(environment, [Settings, _Shop])}

    assert PASSWORD not in str(report)
    assert report["CALLBOARD_BROKER_URL"] == "amqp://ada:**********@queue.example.org/app"
    assert report["CALLBOARD_SHOP_URL"] == "https://shop.example.org/?token=**********&page=2"
    assert report["CALLBOARD_SHOP_MIRROR"] == "https://ada:**********@mirror.example.org"
    assert report["CALLBOARD_SHOP_OPTIONS"] == {"password": "**********", "colour": "red"}


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("file:var", "amqp://guest@localhost/", "smtp://mail.example.org:587", "sqlite:////srv/a.db"):
        assert masked("some_url", url) == url


def test_a_password_with_odd_characters_is_masked_whole() -> None:
    assert masked("broker_url", "amqp://ada:p:w@x@host/v") == "amqp://ada:**********@host/v"
    for url in ("amqp://ada:{}/x@host", "redis://ada:{}#x@host", "redis:/ada:a {}@host", "amqp:ada:{}@host"):
        assert PASSWORD not in masked("broker_url", url.format(PASSWORD))


def test_a_mistyped_variable_is_pointed_out() -> None:
    found = strays(
        {"CALLBOARD_BROKR_URL": "x", "CALLBOARD_MODULE": "app", "PATH": "/bin"},
        ["CALLBOARD_BROKER_URL", "CALLBOARD_STORE_URL"],
    )

    assert [(stray.variable, stray.nearest) for stray in found] == [
        ("CALLBOARD_BROKR_URL", "CALLBOARD_BROKER_URL")
    ]
