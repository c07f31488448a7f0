"""Settings: every value and where it came from, with secrets masked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from callboard.payload import MASK, is_secret_name
from callboard.settings import CallboardSettings

# user:password@ in a URL; the password may hold anything but @ and /, as servers demand.
_PASSWORD = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s:@]*:)(?P<password>[^/?#\s]*)(?=@)")
# The same in one that is written wrongly: what a person would call the password.
_ODD_PASSWORD = re.compile(
    r"(?P<head>^[A-Za-z][A-Za-z0-9+.-]*:/{0,2}[^/:@]*:)(?P<password>.*)(?=@)", re.DOTALL
)
_QUERY_SECRET = re.compile(r"(?P<head>[?&;](?P<name>[^=&;\s]+)=)(?P<value>[^&;\s]+)")

#: Variables that commands read, and no settings class.
COMMAND_VARIABLES = {
    "CALLBOARD_MODULE": "The module with the application's broker, instead of 'broker'.",
    "CALLBOARD_DEBUG": "Set to 1, errors of commands show their traceback.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting. `value` is JSON's, masked; `source` is 'environment' or 'default'."""

    variable: str
    value: Any
    source: str
    default: Any
    description: str
    belongs_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A variable with our prefix that nothing reads: most likely a mistyped one."""

    variable: str
    nearest: str | None


def settings_classes() -> list[type[CallboardSettings]]:
    """The settings classes of all modules that are imported, the core one first."""
    found: list[type[CallboardSettings]] = []
    todo = list(CallboardSettings.__subclasses__())
    while todo:
        cls = todo.pop(0)
        if cls not in found:
            found.append(cls)
        todo += cls.__subclasses__()
    core = [cls for cls in found if cls.__module__ == "callboard.settings"]
    return core + sorted((cls for cls in found if cls not in core), key=lambda c: (c.__module__, c.__name__))


def settings_report(
    environ: Mapping[str, str], classes: Iterable[type[CallboardSettings]] | None = None
) -> list[Setting]:
    """Every setting that some class reads, once.

    Raises:
        SettingsError: One is malformed.
    """
    report: dict[str, Setting] = {}
    for cls in classes if classes is not None else settings_classes():
        values = cls.load()
        prefix = cls.model_config.get("env_prefix", "")
        for name, info in cls.model_fields.items():
            variable = f"{prefix}{name}".upper()
            given = bool(_given(environ, variable))
            default = info.get_default(call_default_factory=True, validated_data={})
            report.setdefault(
                variable,
                Setting(
                    variable=variable,
                    value=masked(name, getattr(values, name)),
                    source="environment" if given else "default",
                    default=None if info.is_required() else masked(name, default),
                    description=info.description or "",
                    belongs_to="callboard" if cls.__module__ == "callboard.settings" else cls.__module__,
                ),
            )
    return list(report.values())


def strays(environ: Mapping[str, str], known: Iterable[str]) -> list[Stray]:
    """Variables that begin with CALLBOARD_ and that nothing reads."""
    names = {*known, *COMMAND_VARIABLES}
    return [
        Stray(variable=variable, nearest=next(iter(get_close_matches(variable, names, n=1)), None))
        for variable in sorted(environ)
        if variable.upper().startswith("CALLBOARD_") and variable.upper() not in names
    ]


def masked(name: str, value: Any) -> Any:
    """A setting's value as JSON, without its secrets: those of secret types, those whose names say so, and
    passwords inside URLs."""
    if isinstance(value, SecretStr | SecretBytes):
        secret = value.get_secret_value()
        return mask_url(secret) if isinstance(secret, str) and _is_url(secret) else MASK
    if value not in (None, "") and is_secret_name(name):
        return MASK
    plain = _mask_inside(to_jsonable_python(value, fallback=str))
    if isinstance(plain, str) and MASK not in plain and name.lower().endswith("url"):
        return _ODD_PASSWORD.sub(lambda match: f"{match['head']}{MASK}", plain)
    return plain


def _mask_inside(value: Any) -> Any:
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, list):
        return [_mask_inside(item) for item in value]
    if isinstance(value, dict):
        return {key: masked(str(key), item) for key, item in value.items()}
    return value


def mask_url(text: str) -> str:
    """A text whose URLs show no passwords."""
    text = _PASSWORD.sub(lambda match: f"{match['head']}{MASK}", text)
    return _QUERY_SECRET.sub(
        lambda match: f"{match['head']}{MASK}" if is_secret_name(match["name"]) else match[0], text
    )


def _is_url(text: str) -> bool:
    """A URL is worth showing without its password, whatever type the setting has."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _given(environ: Mapping[str, str], variable: str) -> str:
    """Settings' variables are read whatever their case."""
    return next((value for name, value in environ.items() if name.upper() == variable), "")
