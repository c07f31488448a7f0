"""A payload: an actor's arguments, as a type that is checked at the send and at the run.

It comes from the actor's own parameters, or from a pydantic model where versions, validators or secrets
are wanted. The wire format is the same for both: keyword arguments as JSON.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache
from math import isfinite
from operator import is_
from typing import Any, NotRequired, Required, TypeVar, get_type_hints

import msgspec
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError, PydanticUndefined, to_jsonable_python
from typing_extensions import TypedDict

from callboard.errors import DeclarationError

T = TypeVar("T")

MASK = "**********"

_ATOMS: frozenset[type] = frozenset({str, int, float, bool, type(None)})
_FEW_KEYS = 32  # the keys of an object that has more are its data

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|^pwd$|secret|token$|api_?key$|private_?key$|^auth(orization)?$|credential|cookie$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class PayloadMismatch(ValueError):
    """Arguments that don't fit; the text says which and why, without their values."""


class Payload:
    """What an actor accepts. Made once, when the actor is declared.

    Args:
        fn: The actor's function.
        model: The pydantic model that is its one parameter, if it has one.

    Raises:
        DeclarationError: If the parameters can't be a payload.
    """

    def __init__(self, fn: Callable[..., Any], model: type[BaseModel] | None = None) -> None:
        self.model = model
        self.name = getattr(fn, "__name__", "actor")
        self._signature = inspect.signature(fn)
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(
                model or _typed_dict(self.name, fn, self._signature)
            )
        except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
            raise DeclarationError(
                f"the parameters of '{self.name}' can't be a payload: {str(error).splitlines()[0]}"
            ) from error
        self._validate = self._adapter.validator.validate_python
        self._dump = self._adapter.serializer.to_python
        self._has_secrets = _mentions(_is_secret, self._adapter.core_schema)
        self._has_any = _mentions(_is_any, self._adapter.core_schema)
        self._has_floats = self._has_any or _mentions(_is_float, self._adapter.core_schema)
        self._strict = model is not None and bool(model.model_config.get("strict"))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Arguments as they were given, positional or not, as one unchecked value.

        Raises:
            PayloadMismatch: If positional ones don't fit the signature.
        """
        if not args:
            return kwargs
        if self.model is not None:
            if len(args) == 1 and not kwargs and isinstance(args[0], self.model):
                return args[0]
            raise PayloadMismatch(f"takes one {self.model.__name__}, or its fields by name")
        try:
            return self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise PayloadMismatch(str(error)) from error

    @cached_property
    def fields(self) -> frozenset[str]:
        """The names of its fields."""
        return frozenset(self._signature.parameters if self.model is None else self.model.model_fields)

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """What fields are that weren't sent, as JSON has it; but not what a factory makes anew for each payload."""
        if self.model is None:
            given = {name: parameter.default for name, parameter in self._signature.parameters.items()}
        else:
            given = {name: field.default for name, field in self.model.model_fields.items()}
        return {
            name: to_jsonable_python(default, fallback=str)
            for name, default in given.items()
            if default is not inspect.Parameter.empty and default is not PydanticUndefined
        }

    def check(self, value: Any) -> Any:
        """A checked payload: an instance of the model, or a dict of arguments. Takes Python values or JSON's.

        Raises:
            PayloadMismatch: Naming each field that is wrong.
        """
        try:
            if self._strict and not isinstance(value, BaseModel):
                return self._adapter.validate_json(msgspec.json.encode(value))
            return self._validate(value)
        except ValidationError as error:
            raise PayloadMismatch(_explain(error)) from None
        except (TypeError, msgspec.MsgspecError) as error:
            raise PayloadMismatch(str(error)) from error

    def to_wire(self, checked: Any) -> dict[str, Any]:
        """A checked payload as JSON values; secrets are in clear, for only the message carries them.

        Raises:
            PayloadMismatch: If something in it is no JSON.
        """
        if self._has_floats and not is_finite(checked):
            raise PayloadMismatch("JSON has no NaN and no infinity")
        return self.dump(checked)

    def dump(self, checked: Any) -> dict[str, Any]:
        """`to_wire` for a caller who sees to it that all numbers are finite: see `is_finite`.

        Raises:
            PayloadMismatch: If something in it is no JSON.
        """
        try:
            wire: dict[str, Any] = self._dump(checked, mode="json")
            # What is the same before and after holds no secret; to compare takes a tenth of a search.
            if self._has_secrets or (self._has_any and wire != checked and _holds_secret(checked)):
                wire = _reveal(self._dump(checked, mode="python"), wire)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise PayloadMismatch(str(error).splitlines()[0]) from error
        return wire

    def call(self, fn: Callable[..., T], checked: Any) -> T:
        """Call the actor's function with a checked payload."""
        return fn(checked) if self.model is not None else fn(**checked)

    def masked(self, wire: Mapping[str, Any]) -> str:
        """JSON of a wire payload for people to read, its secrets hidden."""
        if self._has_secrets:
            try:
                wire = self._dump(self.check(dict(wire)), mode="json")
            except PayloadMismatch:
                return "{}"
        return masked_json(wire)

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema (2020-12) of the wire format."""
        schema = self._adapter.json_schema()
        if self.model is None:
            schema.pop("title", None)
            for name, parameter in self._signature.parameters.items():
                if parameter.default is not parameter.empty:
                    default = to_jsonable_python(parameter.default, fallback=repr)
                    schema.get("properties", {}).get(name, {})["default"] = default
        return schema


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a key looks like one that holds a secret: `password`, `api_key`, `access_token`, ..."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name).replace("-", "_")) is not None


@lru_cache(maxsize=1024)
def _name_secrets(keys: tuple[Any, ...]) -> bool:
    # Of any kind of text: one that equals a plain one finds what was said of the other.
    return any(isinstance(key, str) and is_secret_name(key) for key in keys)


def mask(value: Any) -> Any:
    """JSON values with what stands under secret-looking keys hidden. What needs no hiding is handed back as it is."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        hidden: dict[Any, Any] | None = None
        may_hold = len(value) > _FEW_KEYS or _name_secrets(tuple(value))
        for key, item in value.items():
            if may_hold and type(key) is str and is_secret_name(key):
                masked = MASK if item not in (None, "") else item
            elif type(item) in _ATOMS:
                continue
            else:
                masked = mask(item)
            if masked is not item:
                if hidden is None:
                    hidden = dict(value)
                hidden[key] = masked
        return value if hidden is None else hidden
    if kind is list:
        if _ATOMS.issuperset(map(type, value)):
            return value
        shown = [mask(item) for item in value]
        return value if all(map(is_, shown, value)) else shown
    if isinstance(value, Mapping):
        return mask({**value})
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    return value


def masked_json(value: Any) -> str:
    """`mask`ed values as JSON; what is no JSON is shown by its type's name."""
    return msgspec.json.encode(mask(value), enc_hook=lambda item: f"<{type(item).__name__}>").decode()


def _typed_dict(name: str, fn: Callable[..., Any], signature: inspect.Signature) -> Any:
    hints = get_type_hints(fn, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DeclarationError(
                f"'{name}' takes {parameter}, which has no name on the wire; give each parameter a name and a type"
            )
        hint = hints.get(parameter.name, Any)
        fields[parameter.name] = Required[hint] if parameter.default is parameter.empty else NotRequired[hint]
    make: Any = TypedDict  # a type checker allows literals only
    payload = make(f"{name}_payload", fields)
    payload.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return payload


def _mentions(wanted: Callable[[Mapping[str, Any]], bool], schema: Any, depth: int = 0) -> bool:
    """Whether a core schema has a node of a kind."""
    if isinstance(schema, Mapping):
        return wanted(schema) or any(_mentions(wanted, item, depth + 1) for item in schema.values())
    if isinstance(schema, list | tuple) and depth < 60:
        return any(_mentions(wanted, item, depth + 1) for item in schema)
    return False


def _is_secret(node: Mapping[str, Any]) -> bool:
    return hasattr(node.get("cls"), "get_secret_value")


def _is_any(node: Mapping[str, Any]) -> bool:
    return node.get("type") == "any"


def _is_float(node: Mapping[str, Any]) -> bool:
    return node.get("type") == "float"


def is_finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite: JSON would make null of it."""
    if isinstance(value, float):
        return isfinite(value)
    return all(item is None or type(item) in _FINITE or is_finite(item) for item in _parts(value))


def _holds_secret(value: Any) -> bool:
    """Whether a secret is somewhere in a value whose type doesn't say so."""
    if hasattr(value, "get_secret_value"):
        return True
    return any(type(item) not in _ATOMS and _holds_secret(item) for item in _parts(value))


_FINITE = _ATOMS - {float}


def _parts(value: Any) -> Collection[Any]:
    """What a value is made of, if it is made of others."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, BaseModel):
        return vars(value).values()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return ()


def _reveal(plain: Any, wire: Any) -> Any:
    """The wire values, with the secrets that JSON mode hides put back from the Python values."""
    if hasattr(plain, "get_secret_value"):
        secret = plain.get_secret_value()
        return secret.decode() if isinstance(secret, bytes) else to_jsonable_python(secret)
    if isinstance(plain, Mapping) and isinstance(wire, Mapping):
        return {
            key: _reveal(item, wire_item)
            for (key, wire_item), item in zip(wire.items(), plain.values(), strict=True)
        }
    if isinstance(plain, list | tuple) and isinstance(wire, list):
        return [_reveal(item, wire_item) for item, wire_item in zip(plain, wire, strict=True)]
    if isinstance(plain, set | frozenset):  # in whatever sequence: the two have none in common
        return [
            _reveal(item, None) if hasattr(item, "get_secret_value") else to_jsonable_python(item)
            for item in plain
        ]
    return wire


def _explain(error: ValidationError) -> str:
    problems = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing":
            problems.append(f"'{where}' is missing")
        elif detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            problems.append(f"'{where}' is not a parameter")
        else:
            problems.append(f"'{where}': {detail['msg']}" if where else detail["msg"])
    return "; ".join(problems)
