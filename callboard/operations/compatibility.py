"""Whether jobs that wait can still run after a deploy: what actors accept now, beside what they accepted.

The comparison asks of each actor that whatever fitted its payload fits it now, on the JSON schemas. Where a change
can't be judged, it is told as one that breaks. A payload of a raised version has passed its actor's steps, which nobody
can judge: it is taken at their word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from callboard.operations.declared import ActorSchema

#: What a schema says for people alone.
_REMARKS = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "writeOnly",
        "readOnly",
        "discriminator",
        "$defs",
    }
)
_LEAST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_MOST = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_STRUCTURE = frozenset(
    {
        "type",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "$ref",
        "properties",
        "required",
        "additionalProperties",
        "items",
    }
)
_Schema = Mapping[str, Any]


class KnownActor(msgspec.Struct, frozen=True):
    """An actor as it was released."""

    category: str
    version: int
    payload: dict[str, Any] | None  # None: a stock actor, which checks nothing


class Release(msgspec.Struct, frozen=True):
    """The actors of a release, by name."""

    actors: dict[str, KnownActor]


@dataclass(frozen=True, slots=True)
class Break:
    """A change that jobs which wait don't outlive.

    Attributes:
        actor: Whose.
        change: What has changed.
        remedy: What to do.
    """

    actor: str
    change: str
    remedy: str


def release_of(schemas: Sequence[ActorSchema]) -> bytes:
    """What is to be kept of a release, as JSON for a file."""
    actors = {
        schema.name: {"category": schema.category, "version": schema.version, "payload": schema.payload}
        for schema in schemas
    }
    return (json.dumps({"actors": actors}, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_release(data: bytes) -> Release:
    """What `release_of` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        return msgspec.json.decode(data, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it holds no schemas of actors: {error}") from error


def breaks(before: Release, now: Sequence[ActorSchema]) -> list[Break]:
    """The changes since a release that jobs which wait don't outlive, by actor."""
    actors = {schema.name: schema for schema in now}
    categories = {schema.category for schema in now}
    found: list[Break] = []
    for name, old in sorted(before.actors.items()):
        new = actors.get(name)
        if new is None:
            found.append(
                Break(
                    name,
                    "it is gone, and jobs of it that wait would be parked, and dead after an hour",
                    "keep it until none waits (callboard jobs list --actor NAME); then write the file anew",
                )
            )
        else:
            found += _breaks_of(old, new, categories)
    return found


def _breaks_of(old: KnownActor, new: ActorSchema, categories: set[str]) -> Iterator[Break]:
    if old.category not in categories:
        yield Break(
            new.name,
            f"no actor is in the category '{old.category}' any more, so that no worker takes what waits there",
            f"leave it there with category='{old.category}' until nothing waits (callboard queues)",
        )
    if new.version < old.version:
        yield Break(
            new.name,
            f"its payload's version went back from {old.version} to {new.version}, and jobs of the former would wait",
            f"raise it to {old.version + 1}, with a step from {old.version} to what it is now",
        )
    elif not any(step in new.steps for step in range(old.version, new.version)):
        raised = max(new.version, old.version + 1)
        for change in _refusals(old.payload, new.payload):
            yield Break(
                new.name,
                change,
                f"undo it, or bring older payloads up to date: version={raised}, upcast={{{old.version}: ...}}",
            )


def _refusals(old: _Schema | None, new: _Schema | None) -> list[str]:
    if new is None:
        return []
    if old is None:
        return ["it took any arguments, and checks them now"]
    return list(dict.fromkeys(_Comparison(old, new).run()))


class _Comparison:
    """Of two JSON schemas: what fits the old one, and not the new one."""

    def __init__(self, old: _Schema, new: _Schema) -> None:
        self._old, self._new = old, new
        self._under_way: set[tuple[str, str]] = set()  # pairs of schemas that refer to themselves

    def run(self) -> Iterator[str]:
        return self._compare(self._old, self._new, "")

    def _compare(self, old: _Schema, new: _Schema, where: str) -> Iterator[str]:
        pair = str(old.get("$ref", "")), str(new.get("$ref", ""))
        if any(pair):
            if pair in self._under_way:
                return
            self._under_way.add(pair)
        yield from self._compare_all(_alternatives(old, self._old), _alternatives(new, self._new), where)
        self._under_way.discard(pair)

    def _compare_all(self, old: list[_Schema], new: list[_Schema], where: str) -> Iterator[str]:
        """Each of the old alternatives has to fit one of the new ones."""
        for was in old:
            tries = [list(self._compare_one(was, now, where)) for now in new]
            if all(tries):
                same_type = [
                    told for told, now in zip(tries, new, strict=True) if now.get("type") == was.get("type")
                ]
                if len(new) == 1 or len(same_type) == 1:
                    yield from (same_type or tries)[0]
                else:
                    yield f"{_name(where)} no longer takes {_kind(was)}"

    def _compare_one(self, old: _Schema, new: _Schema, where: str) -> Iterator[str]:
        if "enum" in new:
            gone = [value for value in old.get("enum", ()) if value not in new["enum"]]
            if "enum" not in old:
                yield f"{_name(where)} took {_kind(old)}, and takes only {_values(new['enum'])} now"
            elif gone:
                yield f"{_name(where)} no longer takes {_values(gone)}"
            return
        if "enum" in old and "type" in new and "type" not in old:
            old = (
                {**old, "type": new["type"]} if all(_is(value, new["type"]) for value in old["enum"]) else old
            )
        if (
            "type" in new
            and old.get("type") != new["type"]
            and (old.get("type"), new["type"]) != ("integer", "number")
        ):
            yield f"{_name(where)} took {_kind(old)}, and takes {_kind(new)} now"
            return
        if "enum" in old:  # a few values of a type that is taken
            return
        yield from self._compare_limits(old, new, where)
        if new.get("type") == "object":
            yield from self._compare_fields(old, new, where)
        if "items" in new:
            yield from self._compare(old.get("items", {}), new["items"], f"{where}[]")

    def _compare_limits(self, old: _Schema, new: _Schema, where: str) -> Iterator[str]:
        for key in sorted(new.keys() - _REMARKS - _STRUCTURE):
            was, now = old.get(key), new[key]
            if was == now:
                continue
            if key in _LEAST and was is not None and now <= was:
                continue
            if key in _MOST and was is not None and now >= was:
                continue
            before = "had none" if was is None else f"was {_short(was)}"
            yield f"the '{key}' of {_name(where)} is {_short(now)}, and {before}"

    def _compare_fields(self, old: _Schema, new: _Schema, where: str) -> Iterator[str]:
        fields, known = old.get("properties", {}), new.get("properties", {})
        others = new.get("additionalProperties", True)
        ignored = "additionalProperties" not in new  # what isn't a field is thrown away
        for name in new.get("required", ()):
            if name not in fields:
                yield f"{_name(_at(where, name))} is new, and has no default"
            elif name not in old.get("required", ()):
                yield f"{_name(_at(where, name))} could be left out, and can't be now"
        for name, field in fields.items():
            if name in known:
                yield from self._compare(field, known[name], _at(where, name))
            elif others is False or (ignored and name in old.get("required", ())):
                yield f"{_name(_at(where, name))} is gone"
            elif others is not True:
                yield from self._compare(field, others, _at(where, name))
        took = old.get("additionalProperties", True)
        if others is False and took is not False:
            yield f"{_name(where)} refuses fields that it doesn't know, and didn't"
        elif isinstance(others, Mapping) and took is not False:
            yield from self._compare({} if took is True else took, others, _at(where, "*"))


def _alternatives(schema: _Schema, root: _Schema) -> list[_Schema]:
    """A schema as those of which one has to fit, references followed."""
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].rpartition("/")[2]]
        return _alternatives(target, root)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return [one for option in schema[key] for one in _alternatives(option, root)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    if "const" in schema:
        rest = {key: value for key, value in schema.items() if key != "const"}
        return [{**rest, "enum": [schema["const"]]}]
    return [schema]


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type of JSON schema."""
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "null": (type(None),),
    }
    return type(value) in kinds.get(kind, ())


def _kind(schema: _Schema) -> str:
    """A schema in a word or two."""
    if "enum" in schema:
        return _values(schema["enum"])
    kind = schema.get("type", "anything")
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _values(values: Sequence[Any]) -> str:
    return ", ".join(_short(value) for value in values)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(where: str) -> str:
    return f"'{where}'" if where else "the payload"
