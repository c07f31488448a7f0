"""How logs look: structlog for our lines and for the standard library's, the job's id on every one."""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from callboard.context import running_job


def add_job(logger: Any, method: str, event: EventDict) -> EventDict:
    """A structlog processor that names the job that runs here. Costs nothing where nothing is logged."""
    del logger, method
    run = running_job()
    if run is not None:
        event.setdefault("job_id", run.id)
        event.setdefault("actor", run.actor)
        event.setdefault("attempt", run.attempt)
    return event


def lines_below(logger: Any, method: str, event: EventDict) -> EventDict:
    """A structlog processor for people: a text of several lines stands below its line, not in it as a literal."""
    del logger, method
    texts = [key for key, value in event.items() if isinstance(value, str) and "\n" in value]
    below = [str(event.pop(key)) for key in texts if key not in ("event", "exception", "stack")]
    if below:
        event["exception"] = "\n".join([*below, *filter(None, [event.get("exception")])])
    return event


def hide_secrets(logger: Any, method: str, event: EventDict) -> EventDict:
    """A structlog processor that hides what stands under a name such as `password` or `api_key`."""
    from callboard.payload import MASK, is_secret_name, mask

    del logger, method
    for name, value in event.items():
        if is_secret_name(name):
            event[name] = MASK if value not in (None, "") else value
        elif type(value) in (dict, list):
            event[name] = mask(value)
    return event


def write_out_controls(logger: Any, method: str, event: EventDict) -> EventDict:
    """A structlog processor for people: what a message or a job says must not drive their terminal."""
    del logger, method
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _harmless(value)
    return event


def _plain_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    # structlog's other ways to draw one show the variables of every frame: passwords, what a job was given.
    whole = io.StringIO()
    structlog.dev.plain_traceback(whole, exc_info)
    stream.write(_harmless(whole.getvalue()))


def _harmless(text: str) -> str:
    """A text with its control characters written out, but for the ends of lines and tabs."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a process logs, see `configure_logging`."""

    level: str = "info"
    style: str = "auto"
    successes: bool = False


_options: LogOptions | None = None


def log_options() -> LogOptions | None:
    """How this process was told to log; None if nobody has called `configure_logging`."""
    return _options


def configure_logging(*, level: str = "info", style: str = "auto", successes: bool = False) -> None:
    """Set up logging for a process. For commands; a library call never does this.

    Args:
        level: The least level that is logged.
        style: 'console', 'json', or 'auto': json unless a person is watching.
        successes: Whether each job that succeeds is told of at level info, too, and not only at debug.
    """
    global _options
    _options = LogOptions(level, style, successes)
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_job,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    renderers: list[Processor]
    if style == "console":
        drawn = structlog.dev.ConsoleRenderer(pad_event_to=0, exception_formatter=_plain_traceback)
        renderers = [write_out_controls, lines_below, drawn]
    else:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It logs each failed connection several times; our link says it once, in a sentence.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.getLogger("dramatiq").setLevel(max(logging.WARNING, root.level))
    # It warns at every run of an actor that returns a value and doesn't store it, which is nobody's fault.
    logging.getLogger("dramatiq.results.middleware.Results").setLevel(max(logging.ERROR, root.level))
    told_at_info = successes and root.level <= logging.INFO
    logging.getLogger("callboard.jobs").setLevel(logging.DEBUG if told_at_info else logging.NOTSET)
