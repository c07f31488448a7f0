"""What becomes of payloads that were sent before a deploy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest

from callboard import InvalidPayload
from callboard.actor import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.errors import DeclarationError
from callboard.versions import CannotUpcast, Fields, upcast


@pytest.fixture
def actor() -> Iterator[ActorDecorator]:
    broker = Broker(StubDriver())
    yield ActorDecorator(broker)
    broker.close()


def with_list(fields: Fields) -> Fields:
    return {**fields, "to": [fields["to"]]}


def without_html(fields: Fields) -> Fields:
    fields.pop("html", None)
    return fields


STEPS = {1: with_list, 2: without_html}


@pytest.mark.parametrize(
    ("start", "fields"),
    [(1, {"to": "ada", "html": True}), (2, {"to": ["ada"], "html": True}), (3, {"to": ["ada"]})],
)
def test_the_steps_from_a_version_on_are_taken(start: int, fields: Fields) -> None:
    assert upcast(fields, STEPS, start=start, end=3) == {"to": ["ada"]}


def test_a_version_without_a_step_is_understood_as_it_is() -> None:
    assert upcast({"to": "ada"}, {2: with_list}, start=1, end=3) == {"to": ["ada"]}


def test_a_step_that_fails_is_told_with_its_version() -> None:
    with pytest.raises(CannotUpcast, match="step from version 1 failed: KeyError: 'to'"):
        upcast({"whom": "ada"}, STEPS, start=1, end=3)


def test_a_step_that_forgets_to_return_is_told() -> None:
    def forgets(fields: Fields) -> Any:
        fields["to"] = []

    with pytest.raises(CannotUpcast, match="step from version 1 returned NoneType, and no dict"):
        upcast({}, {1: forgets}, start=1, end=2)


@pytest.mark.parametrize(
    ("version", "steps", "reason"),
    [
        (0, None, "version=0; it must be a number from 1"),
        ("2", None, "version='2'"),
        (2, {2: with_list}, "a step from version 2, and its payloads come in versions 1 to 2"),
        (1, {0: with_list}, "a step from version 0"),
        (2, {1: "with_list"}, "a step is a function"),
    ],
)
def test_steps_that_can_t_be_taken_are_refused_at_declaration(
    version: Any, steps: Any, reason: str, actor: ActorDecorator
) -> None:
    with pytest.raises(DeclarationError, match=reason):

        @actor(version=version, upcast=steps)
        def send_email(to: list[str]) -> None: ...


def test_what_is_sent_without_a_word_of_its_version_is_of_today_s(actor: ActorDecorator) -> None:
    @actor(version=3, upcast=STEPS)
    def send_email(to: list[str]) -> None: ...

    sent = send_email.send_with_options(kwargs={"to": ["ada"]})
    assert sent.kwargs == {"to": ["ada"]}
    assert sent.options["callboard"]["payload_version"] == 3


def test_a_message_that_was_made_before_a_deploy_is_sent_up_to_date(actor: ActorDecorator) -> None:
    @actor(version=3, upcast=STEPS)
    def send_email(to: list[str]) -> None: ...

    made = old_message(send_email, {"to": "ada", "html": True})
    sent = actor.broker.enqueue(made)
    assert sent.kwargs == {"to": ["ada"]}
    assert sent.options["callboard"]["payload_version"] == 3
    assert made.kwargs["to"] == "ada"


def test_one_that_can_t_be_brought_up_to_date_isn_t_sent(actor: ActorDecorator) -> None:
    @actor(version=3, upcast=STEPS)
    def send_email(to: list[str]) -> None: ...

    with pytest.raises(InvalidPayload, match="'send-email' was not sent: the step from version 1 failed"):
        actor.broker.enqueue(old_message(send_email, {"whom": "ada"}))


def old_message(send_email: Any, fields: Fields) -> dramatiq.Message[Any]:
    message: dramatiq.Message[Any] = send_email.message(to=["x"])
    return message.copy(kwargs=fields, options={"callboard": {"v": 1}})
