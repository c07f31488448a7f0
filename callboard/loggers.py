"""Where Callboard's log lines go: to structlog once it is configured, until then to the standard library's logging.

An application that only sends has its own `logging`, and never asked for structlog's default, standard output.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger


def get_logger(name: str) -> FilteringBoundLogger:
    """A structlog logger that writes to `logging` as long as nothing has configured structlog.

    Args:
        name: The logger's name in both, usually `__name__`.
    """
    return cast("FilteringBoundLogger", _Logger(name, {}))


class _Logger:
    """Decides at each line: the process may configure structlog after the modules have their loggers."""

    __slots__ = ("_name", "_standard", "_structured", "_values")

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self._name = name
        self._values = values
        self._structured = structlog.get_logger(name, **values)
        self._standard = structlog.wrap_logger(
            logging.getLogger(name),
            processors=_to_standard_library,
            wrapper_class=structlog.stdlib.BoundLogger,
        ).bind(**values)

    def bind(self, **values: Any) -> _Logger:
        return _Logger(self._name, {**self._values, **values})

    def __reduce__(self) -> tuple[type[_Logger], tuple[str, dict[str, Any]]]:
        return _Logger, (self._name, self._values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._structured if structlog.is_configured() else self._standard, name)


def _as_text(logger: Any, method: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """A structlog processor: the message, its values as key=value, texts of several lines below."""
    del method
    options: dict[str, Any] = {key: event.pop(key) for key in ("exc_info", "stack_info") if key in event}
    message = str(event.pop("event", ""))
    values = {key: value for key, value in event.items() if value is not None}
    texts = [key for key, value in values.items() if isinstance(value, str) and "\n" in value]
    below = [values.pop(key) for key in texts]
    if (
        type(logger).findCaller is logging.Logger.findCaller
    ):  # structlog's subclass steps over its frames itself
        options["stacklevel"] = _frames_of_structlog()
    line = " ".join([message, *(f"{key}={value!r}" for key, value in values.items())])
    return ("\n".join([line, *below]),), options


def _frames_of_structlog() -> int:
    """So that the record names the line that logs: structlog's methods differ in how deep they stand."""
    frame, count = sys._getframe(2), 0
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("structlog."):
        frame, count = frame.f_back, count + 1
    return max(1, count)


_to_standard_library = (
    structlog.stdlib.filter_by_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    _as_text,
)
