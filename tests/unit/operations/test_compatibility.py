"""What a deploy may change in payloads, and what breaks the jobs that wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.operations.compatibility import Break, Release, breaks, read_release, release_of
from callboard.operations.declared import ActorSchema, schemas


def declared(fn: Callable[..., Any], model: Any = None, **options: Any) -> list[ActorSchema]:
    """The schemas of an application that has one actor."""
    broker = Broker(StubDriver())
    ActorDecorator(broker)(model, **{"name": "work", "category": "jobs", **options})(fn)
    found = schemas(broker)
    broker.close()
    return found


def released(fn: Callable[..., Any], model: Any = None, **options: Any) -> Release:
    return read_release(release_of(declared(fn, model, **options)))


def changes(found: list[Break]) -> list[str]:
    return [found.change for found in found]


class Person(BaseModel):
    name: str
    friends: list[Person] = []


class Stranger(BaseModel):
    name: str
    friends: list[Stranger] = []
    age: int


def takes(annotation: Any) -> Callable[..., None]:
    """A function of one argument, `x`, of a type."""

    def work(x: Any) -> None: ...

    work.__annotations__["x"] = annotation
    return work


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (int, int),
        (int, float),
        (int, int | None),
        (Literal["a"], Literal["a", "b"]),
        (Literal["a", "b"], str),
        (str, Any),
        (datetime, datetime),
        (datetime, str),
        (Annotated[int, Field(ge=5)], Annotated[int, Field(ge=1)]),
        (Annotated[str, Field(max_length=5)], Annotated[str, Field(max_length=9, title="longer")]),
        (Annotated[list[int], Field(min_length=1)], list[float]),
        (dict[str, int], dict[str, int | str]),
        (Person, Person),
        (Person, dict[str, Any]),
        (Decimal, Decimal),
        (int | str, str | None | int),
    ],
    ids=str,
)
def test_a_type_may_become_wider(old: Any, new: Any) -> None:
    assert breaks(released(takes(old)), declared(takes(new))) == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (float, int, "'x' took number, and takes integer now"),
        (int | None, int, "'x' took null, and takes integer now"),
        (Literal["a", "b"], Literal["a"], "'x' no longer takes \"b\""),
        (str, Literal["a"], "'x' took string, and takes only \"a\" now"),
        (Literal["a"], int, "'x' took \"a\", and takes integer now"),
        (Any, str, "'x' took anything, and takes string now"),
        (str, datetime, "the 'format' of 'x' is \"date-time\", and had none"),
        (Annotated[int, Field(ge=1)], Annotated[int, Field(ge=5)], "the 'minimum' of 'x' is 5, and was 1"),
        (str, Annotated[str, Field(max_length=9)], "the 'maxLength' of 'x' is 9, and had none"),
        (str, Annotated[str, Field(pattern="^a")], "the 'pattern' of 'x' is \"^a\", and had none"),
        (list[float], list[int], "'x[]' took number, and takes integer now"),
        (list[int], set[int], "the 'uniqueItems' of 'x' is true, and had none"),
        (dict[str, str], dict[str, int], "'x.*' took string, and takes integer now"),
        (dict[str, Any], Person, "'x.name' is new, and has no default"),
        (Person, Stranger, "'x.age' is new, and has no default"),
        (tuple[int, str], tuple[int, int], "the 'prefixItems' of 'x' is"),
        (int | str | None, int | bool, "'x' no longer takes string"),
    ],
    ids=str,
)
def test_a_type_that_becomes_narrower_breaks(old: Any, new: Any, change: str) -> None:
    found = changes(breaks(released(takes(old)), declared(takes(new))))
    assert any(told.startswith(change) for told in found), found


def test_arguments_with_defaults_may_come() -> None:
    def old(to: str) -> None: ...
    def new(to: str, cc: str | None = None) -> None: ...

    assert breaks(released(old), declared(new)) == []


def test_arguments_without_defaults_may_not_come_nor_any_go() -> None:
    def old(to: str, html: bool, cc: str = "") -> None: ...
    def new(to: str, text: str, cc: str) -> None: ...

    assert breaks(released(old), declared(new)) == [
        Break("work", change, "undo it, or bring older payloads up to date: version=2, upcast={1: ...}")
        for change in (
            "'text' is new, and has no default",
            "'cc' could be left out, and can't be now",
            "'html' is gone",
        )
    ]


def test_a_field_of_a_model_that_ignores_others_may_go_if_it_had_a_default() -> None:
    class Old(BaseModel):
        to: str
        html: bool
        cc: str = ""

    class New(BaseModel):
        to: str

    def send(mail: Any) -> None: ...

    assert changes(breaks(released(send, Old), declared(send, New))) == ["'html' is gone"]


def test_a_raised_version_with_a_step_is_taken_at_its_word() -> None:
    def old(to: str) -> None: ...
    def new(whom: list[str]) -> None: ...

    steps = {1: lambda fields: {"whom": [fields["to"]]}}
    assert breaks(released(old), declared(new, version=2, upcast=steps)) == []
    assert breaks(released(old), declared(old, version=2)) == []
    assert changes(breaks(released(old), declared(new, version=2))) == [
        "'whom' is new, and has no default",
        "'to' is gone",
    ]
    # A step that brings older payloads up to the released one, and none from there
    late = breaks(released(old, version=2), declared(new, version=2, upcast=steps))
    assert changes(late) == ["'whom' is new, and has no default", "'to' is gone"]
    assert "version=3, upcast={2: ...}" in late[0].remedy


def test_a_version_may_not_go_back() -> None:
    def work(to: str) -> None: ...

    (found,) = breaks(released(work, version=3), declared(work, version=2))
    assert found.change.startswith("its payload's version went back from 3 to 2")


def test_an_actor_may_come_and_may_not_go() -> None:
    def work(to: str) -> None: ...

    (found,) = breaks(released(work), declared(work, name="other"))
    assert found.actor == "work"
    assert found.change.startswith("it is gone")


def test_the_last_actor_of_a_category_may_not_leave_it() -> None:
    def work(to: str) -> None: ...

    (found,) = breaks(released(work), declared(work, category="chores"))
    assert found.change.startswith("no actor is in the category 'jobs' any more")
    assert "category='jobs'" in found.remedy


def test_what_is_no_release_is_refused() -> None:
    for data in (b"", b"[]", b'{"actors": {"work": {}}}', b"\xff"):
        with pytest.raises(ValueError, match="it holds no schemas of actors"):
            read_release(data)
