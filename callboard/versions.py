"""The versions of a payload: how one that was sent before a deploy becomes one that is understood after it.

    def with_list(fields: Fields) -> Fields:
        return {**fields, "to": [fields["to"]]}

    @actor(SendEmail, version=3, upcast={1: with_list, 2: without_html})

A step takes the fields of a payload of its version, as they are in JSON, and returns those of the next one. A version
without a step is understood as it is. The message itself is never rewritten: each run that it has begins with the
steps, so that they have to be as pure as they look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from callboard.errors import DeclarationError, text_of

#: A payload's fields by name, as JSON values.
Fields = dict[str, Any]
Step = Callable[[Fields], Fields]


class CannotUpcast(ValueError):
    """A payload can't be brought to a later version; the text says at which step, and why."""


def checked_steps(actor_name: str, version: int, steps: Mapping[int, Step] | None) -> dict[int, Step]:
    """An actor's steps.

    Raises:
        DeclarationError: If its version is none, or a step is none or never taken.
    """
    if type(version) is not int or version < 1:
        raise DeclarationError(f"'{actor_name}' has version={version!r}; it must be a number from 1")
    steps = dict(steps or {})
    for start, step in steps.items():
        if type(start) is not int or not 1 <= start < version:
            raise DeclarationError(
                f"'{actor_name}' has a step from version {start!r}, and its payloads come in versions 1 to {version}: "
                f"raise version=, or give steps from 1 to {version - 1}"
            )
        if not callable(step):
            raise DeclarationError(
                f"'{actor_name}' has upcast={{{start}: {step!r}}}; a step is a function of a payload's fields"
            )
    return steps


def upcast(fields: Fields, steps: Mapping[int, Step], *, start: int, end: int) -> Fields:
    """The fields of a payload of one version, as those of a later one.

    Raises:
        CannotUpcast: If a step fails.
    """
    for version in range(start, end):
        step = steps.get(version)
        if step is None:
            continue
        try:
            fields = step(fields)
        except Exception as error:
            text = text_of(error, limit=300)
            raise CannotUpcast(
                f"the step from version {version} failed: {type(error).__name__}: {text}"
            ) from error
        if not isinstance(fields, dict):
            raise CannotUpcast(
                f"the step from version {version} returned {type(fields).__name__}, and no dict of fields"
            )
    return fields
