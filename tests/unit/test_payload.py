"""Arguments on their way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Secret, SecretStr

from callboard.errors import DeclarationError
from callboard.payload import MASK, Payload, PayloadMismatch, is_secret_name, mask


class Colour(Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    price: Decimal


class Login(BaseModel):
    user: str
    phrase: SecretStr
    others: list[SecretStr] = []


def _invoice(
    invoice_id: int,
    when: datetime,
    items: list[Item],
    *,
    colour: Colour = Colour.RED,
    ref: UUID | None = None,
    pair: tuple[int, int] = (1, 2),
) -> None: ...


def test_rich_types_survive_json_and_back() -> None:
    payload = Payload(_invoice)
    value = {
        "invoice_id": 7,
        "when": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "items": [Item(name="a", price=Decimal("1.10"))],
        "colour": Colour.RED,
        "ref": UUID(int=5),
        "pair": (3, 4),
    }
    wire = json.loads(json.dumps(payload.to_wire(payload.check(value))))
    assert payload.check(wire) == value


def test_arguments_may_be_given_by_position() -> None:
    payload = Payload(_invoice)
    bound = payload.bind((1, datetime(2026, 1, 1, tzinfo=UTC)), {"items": []})
    assert set(payload.check(bound)) == {"invoice_id", "when", "items"}


def test_what_is_wrong_is_named_without_its_value() -> None:
    with pytest.raises(PayloadMismatch) as caught:
        Payload(_invoice).check({"invoice_id": "hunter2", "items": [], "more": 1})
    text = str(caught.value)
    assert "'invoice_id'" in text
    assert "'when' is missing" in text
    assert "'more' is not a parameter" in text
    assert "hunter2" not in text


def test_too_many_arguments_are_a_mismatch() -> None:
    with pytest.raises(PayloadMismatch, match="too many"):
        Payload(_invoice).bind((1, 2, 3, 4, 5), {})


def test_secrets_travel_in_clear_and_are_shown_masked() -> None:
    payload = Payload(lambda job: None, Login)
    checked = payload.check(Login(user="ada", phrase=SecretStr("s3cret"), others=[SecretStr("x1")]))
    wire = payload.to_wire(checked)
    assert wire == {"user": "ada", "phrase": "s3cret", "others": ["x1"]}
    assert payload.check(wire) == checked
    shown = payload.masked(wire)
    assert "s3cret" not in shown
    assert "x1" not in shown
    assert MASK in shown


def test_secrets_are_found_among_many_keys_and_after_keys_that_are_another_kind_of_text() -> None:
    class Key(StrEnum):
        PIN = "card_token"

    mask({Key.PIN: "1234", "amount": 1})
    assert mask({"card_token": "1234", "amount": 1}) == {"card_token": MASK, "amount": 1}
    many = {f"column_{number}": number for number in range(1000)}
    assert mask({**many, "api_key": "k"}) == {**many, "api_key": MASK}


def test_a_strict_model_reads_its_own_wire_format() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        when: datetime

    payload = Payload(lambda job: None, Strict)
    value = Strict(when=datetime(2026, 1, 1, tzinfo=UTC))
    assert payload.check(payload.to_wire(value)) == value


@pytest.mark.parametrize(
    "name",
    ["password", "api_key", "apiKey", "ACCESS_TOKEN", "client-secret", "smtp_password", "Authorization"],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)
    assert mask({name: "abc", "deep": [{name: "abc"}]}) == {name: MASK, "deep": [{name: MASK}]}


@pytest.mark.parametrize("name", ["to", "keyboard", "monkey", "tokens_used", "passenger", "author"])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_parameters_without_a_name_or_a_known_type_are_refused_at_declaration() -> None:
    class Strange: ...

    def var(*args: int) -> None: ...
    def strange(x: Strange) -> None: ...

    for fn in (var, strange):
        with pytest.raises(DeclarationError, match=fn.__name__):
            Payload(fn)


def test_the_schema_shows_types_and_defaults() -> None:
    schema = Payload(_invoice).json_schema()
    assert schema["required"] == ["invoice_id", "when", "items"]
    assert schema["properties"]["pair"]["default"] == [1, 2]


class _OwnSecret(SecretStr): ...


def test_every_kind_of_secret_travels_in_clear() -> None:
    def log_in(
        many: set[SecretStr], one: Secret[str], own: _OwnSecret, what: Any, deep: dict[str, Any]
    ) -> None: ...

    payload = Payload(log_in)
    wire = payload.to_wire(
        payload.check(
            {
                "many": {SecretStr("a"), SecretStr("b")},
                "one": Secret("c"),
                "own": _OwnSecret("d"),
                "what": SecretStr("e"),
                "deep": {"k": [SecretStr("f")]},
            }
        )
    )
    assert sorted(wire.pop("many")) == ["a", "b"]
    assert wire == {"one": "c", "own": "d", "what": "e", "deep": {"k": ["f"]}}


@dataclass
class _Account:
    user: str
    phrase: SecretStr
    balance: float = 0.0


def test_a_secret_in_a_dataclass_of_unknown_type_travels_in_clear() -> None:
    def log_in(what: Any) -> None: ...

    payload = Payload(log_in)
    wire = payload.to_wire(payload.check({"what": [_Account("ada", SecretStr("s3cret"))]}))
    assert wire == {"what": [{"user": "ada", "phrase": "s3cret", "balance": 0.0}]}
    with pytest.raises(PayloadMismatch, match="NaN"):
        payload.to_wire(payload.check({"what": _Account("ada", SecretStr("s3cret"), float("nan"))}))


def test_only_what_needs_hiding_is_copied() -> None:
    plain = {"a": [1, {"b": None}], "c": {"d": 2.0}}
    assert mask(plain) is plain
    given = {"plain": plain, "list": [{"token": "t"}, "x"], "pair": ({"pwd": "p"},), "token": None}
    assert mask(given) == {
        "plain": plain,
        "list": [{"token": MASK}, "x"],
        "pair": [{"pwd": MASK}],
        "token": None,
    }
    assert given["list"] == [{"token": "t"}, "x"]
