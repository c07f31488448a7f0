"""Writes `docs/reference/cli.md` and `docs/reference/settings.md` from the commands and settings themselves.

    python -m callboard.cli.reference

in the folder of the application whose services' settings are to be listed. A test compares the files with what this
would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from callboard.cli.commands import app
from callboard.cli.exits import ExitCode

#: What the fields of JSON documents mean. Fields are added now and then, never renamed or removed.
JSON_FIELDS: dict[str, dict[str, str]] = {
    "A job": {
        "id": "Its id.",
        "state": "scheduled, queued, running, retrying, snoozed, parked, succeeded, dead, cancelled, expired or "
        "discarded.",
        "actor": "The actor's name.",
        "category": "The module that the actor is declared in.",
        "queue": "Where it waits, or waited.",
        "priority": "critical, high, medium or low.",
        "tags": "The words to find it by.",
        "payload": "Its arguments, secrets masked; null if they aren't known.",
        "enqueued_at": "When it was sent.",
        "due_at": "When it may start, if it waits for that.",
        "expires_at": "It doesn't start later than this.",
        "started_at": "When its last run began.",
        "finished_at": "When it ended; null if it hasn't.",
        "updated_at": "When its state became known.",
        "attempt": "Counted runs so far, the current one included.",
        "worker": "Who runs it, or ran it last.",
        "error_type": "The type of its last error.",
        "error": "The text of its last error.",
        "fingerprint": "What dead letters of the same cause have in common.",
        "reason": "Why it is where it is, in a few words.",
        "progress": "From 0 to 1, if it tells.",
        "progress_note": "What it tells beside.",
    },
    "A job in full (`jobs show`): also": {
        "traceback": "Of its last error.",
        "story": "What happened to it, the oldest first: each with `at`, `state`, `attempt`, `worker`, `text`.",
        "why": "Where it is and why it isn't running, in a sentence.",
    },
    "A dead letter": {
        "id": "The job's id.",
        "actor": "The actor's name.",
        "category": "The category; the letter lies in the queue `<category>.dead`.",
        "queue": "Where a replay goes.",
        "died_at": "When it died.",
        "attempts": "How often it ran.",
        "reason": "Why it is dead.",
        "error": "Its last error, in a line.",
        "fingerprint": "What letters of the same cause have in common.",
        "tags": "The words to find it by.",
    },
    "A dead letter in full (`dead show`): also": {
        "enqueued_at": "When it was sent.",
        "payload": "Its arguments, secrets masked.",
        "traceback": "Of its last error.",
        "story": "How it died, the oldest first: each with `at`, `attempt`, `worker`, `text`.",
        "from_broker": "Whether the store didn't know it, so that its queue was read.",
    },
    "A queue": {
        "name": "Its name.",
        "kind": "jobs, dead or quarantine.",
        "category": "Its category.",
        "priority": "critical, high, medium or low; empty for the other kinds.",
        "ready": "How many can be claimed now.",
        "claimed": "How many workers hold; null where the broker can't tell (RabbitMQ).",
        "delayed": "How many aren't due yet; null where the broker can't tell (RabbitMQ).",
        "consumers": "How many workers consume it.",
        "paused": "Whether it is paused; null while the store is away.",
    },
    "A worker": {
        "worker": "Its name: host, process and a suffix.",
        "host": "The host it runs on.",
        "pid": "Its process.",
        "started_at": "When it started.",
        "seen_at": "When it gave its last sign of life.",
        "queues": "The queues it consumes.",
        "threads": "How many jobs it runs at once.",
        "running": "The ids of the jobs it runs.",
        "claimed": "How many more it holds.",
    },
    "A schedule": {
        "name": "Its actor's.",
        "expression": "When it is due, as a cron expression.",
        "zone": "The time zone of that.",
        "text": "The same in plain language.",
        "misfire": "What is done about ticks that nobody served in time: run once, run all or skip.",
        "misfire_age": "How old a tick may be to be made up for, in seconds; null for any age.",
        "misfire_limit": "How many are made up for by run all.",
        "overlap": "allow, or skip: no tick while the last one's job hasn't ended.",
        "paused_at": "Since when it is paused; null if it isn't.",
        "paused_by": "Who paused it.",
        "served_until": "Up to when all its ticks are dealt with; null before a scheduler has seen it.",
        "next": "Its next five ticks, in its zone.",
        "last": "What became of its last tick; null if none is known.",
    },
    "A tick (`schedules show` has the newest in `ticks`)": {
        "due": "When it was due; of several in a row that had the same fate, the last one.",
        "first": "When the first of these was due.",
        "count": "How many these are.",
        "fate": "on time, caught up, missed, overlap, paused, failed (its job can't be sent) or run now.",
        "at": "When that was decided.",
        "by": "The process or the person that did.",
        "id": "The job that was sent; null if none was.",
        "reason": "Why none was.",
    },
    "A message in quarantine": {
        "id": "Twelve digits that stand for it.",
        "from": "The queue it came from.",
        "reason": "Why it is in quarantine.",
        "since": "Since when.",
        "size": "Of its body, in bytes.",
        "copies": "How many are exactly like it.",
        "options": "Its options as JSON, secrets masked; empty if it has none or can't be read.",
        "starts": "The names of the options that make other jobs run.",
        "body": "Its beginning, secrets masked.",
    },
    "An actor": {
        "name": "Its name.",
        "category": "The module it is declared in.",
        "queue": "Where its jobs wait, unless a send says otherwise.",
        "priority": "Of that queue.",
        "version": "Of its payload.",
        "attempts": "Runs in all; null for the default.",
        "time_limit": "In seconds; null for the default.",
        "periodic": "Its schedule, if it starts by itself.",
        "summary": "The first line of its docstring.",
        "payload": "The JSON schema of its arguments; null for a stock Dramatiq actor, which checks none.",
    },
}

_HEAD = """# The command line

<!-- Written by `python -m callboard.cli.reference`; change the commands' own help instead. -->

`callboard` works on the application in the current folder: on the `broker` of its `broker.py`, or of the module that
`--module` or `CALLBOARD_MODULE` names.

- Ids may be given by their beginning or end, of six characters or more: `callboard why 3597f594`.
- Lengths of time are written `90s`, `10m`, `1h30m`, `2d`; moments `2025-12-24T18:00+01:00`, or without a zone for this
  machine's local time.
- Tables fit the terminal: ids are shortened to their ends and columns left out when it is narrow. Piped into a program
  they are whole. For programs there is `--json`.
- What throws something away asks first; `--yes` answers. It is written into the audit log before and after.
- A failure is one sentence on stderr, and an exit code. `CALLBOARD_DEBUG=1` adds the traceback, and logs.
"""

_JSON = """## JSON

One document a command, on stdout; `jobs watch --json` prints a line for each change. Moments are ISO 8601 in UTC.
Fields are added now and then, never renamed or removed.

| Command | Document |
|---|---|
| `jobs list` | `{"jobs": [a job, ...], "next": ...}`; give `next` to `--after` for the next page, null on the last |
| `jobs show` | a job in full |
| `jobs watch` | a line for each change: a job |
| `jobs cancel`, `jobs retry` | `{"cancelled": [id, ...], "too_late": [id, ...]}`, `{"replayed": [id, ...]}` |
| `why` | `{"id", "known", "why", "facts"}`; the facts are what the sentence rests on |
| `enqueue` | `{"id", "actor", "queue", "queued"}`; `queued` is false where another job has the key, whose id \
is then the `id` |
| `dead list` | `{"letters": [a dead letter, ...], "more": bool}`; with `--by-cause` `{"causes": [{"fingerprint", \
"actor", "error", "count", "first_at", "last_at"}, ...]}` |
| `dead show` | a dead letter in full |
| `dead replay`, `discard`, `reindex` | `{"replayed" or "discarded" or "indexed": [id, ...], "not_found", "merged", \
"unreadable", "key_taken", "past_deadline", "recorded"}` |
| `queues list` | `{"queues": [a queue, ...]}` |
| `queues create` | `{"created": [name, ...]}` |
| `queues pause`, `resume`, `purge` | `{"paused": [name, ...]}`, `{"resumed": [...]}`, \
`{"queue", "purged", "recorded"}` |
| `schedules list` | `{"schedules": [a schedule, ...]}` |
| `schedules show` | a schedule, and `ticks`: [a tick, ...] |
| `schedules pause`, `resume`, `run` | `{"paused": name}`, `{"resumed": name}`, `{"id"}` |
| `quarantine list` | `{"messages": [a message, ...]}` |
| `workers` | `{"workers": [a worker, ...]}` |
| `schemas` | `{"actors": [an actor, ...]}`; with `--check` `{"breaks": [{"actor", "change", "remedy"}, ...]}` |
| `settings` | `{"settings": [{"variable", "value", "source", "default", "belongs_to", "description"}, ...], \
"unknown": [...]}` |
| `audit` | `{"entries": [{"at", "who", "action", "target", "count", "details"}, ...]}` |
"""

_SETTINGS_HEAD = """# Settings

<!-- Written by `python -m callboard.cli.reference`; change the settings classes instead. -->

Every setting is an environment variable. `callboard settings` shows the values that are in force and where each comes
from, and points out variables that nothing reads.
"""


def cli_reference() -> str:
    """The text of `docs/reference/cli.md`."""
    parts = [_HEAD, "## Exit codes\n", "| Code | Meaning |\n|---|---|"]
    parts += [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    parts += ["", "## Commands\n"]
    for path, command in _commands(get_command(app), "callboard"):
        parts += _section(path, command)
    parts.append(_JSON)
    for title, fields in JSON_FIELDS.items():
        parts += [f"### {title}\n", "| Field | Meaning |\n|---|---|"]
        parts += [f"| `{name}` | {meaning} |" for name, meaning in fields.items()]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    if path == "callboard":
        yield path, command
    for name, child in children.items():
        yield from _commands(child, f"{path} {name}")


def _section(path: str, command: Any) -> list[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join([f"`{path}", *(_argument(parameter) for parameter in arguments), "[OPTIONS]`"])
    parts = [f"### {path}\n", usage + "\n", re.sub(r"\s*\n\s*", " ", (command.help or "").strip()) + "\n"]
    rows = [*(_row(p, _argument(p)) for p in arguments), *(_row(p, _option(p)) for p in _options(command))]
    if rows:
        parts += ["| | |\n|---|---|", *rows, ""]
    return parts


def _options(command: Any) -> list[Any]:
    unwanted = {"help", "install_completion", "show_completion"}
    return [p for p in command.params if p.param_type_name == "option" and p.name not in unwanted]


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    if parameter.nargs == -1:
        name += "..."
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar}"


def _row(parameter: Any, names: str) -> str:
    default = parameter.default
    hint = ""
    if isinstance(default, int | float | str) and not isinstance(default, bool) and default != "":
        hint = f" Default: {default}."
    text = (parameter.help or "").strip().replace("|", "\\|")
    return f"| `{names}` | {text}{hint} |"


def settings_reference() -> str:
    """The text of `docs/reference/settings.md`, for the settings classes that are imported."""
    from callboard.operations.configuration import COMMAND_VARIABLES, settings_classes, settings_report

    classes = [cls for cls in settings_classes() if not cls.__module__.startswith("tests")]
    parts = [_SETTINGS_HEAD]
    place = ""
    for setting in sorted(
        settings_report({}, classes), key=lambda setting: setting.belongs_to != "callboard"
    ):
        if setting.belongs_to != place:
            place = setting.belongs_to
            title = "The core" if place == "callboard" else f"`{place}`"
            parts += [f"## {title}\n", "| Variable | Default | Meaning |\n|---|---|---|"]
        description = setting.description.replace("|", "\\|")
        parts.append(f"| `{setting.variable}` | {_default(setting.default)} | {description} |")
    parts += ["## The command line\n", "| Variable | Meaning |\n|---|---|"]
    parts += [f"| `{variable}` | {meaning} |" for variable, meaning in COMMAND_VARIABLES.items()]
    text = "\n".join(parts) + "\n"
    return re.sub(r"(\|\n)(## )", r"\1\n\2", text)


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def write(folder: Path) -> None:
    """Write both files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text(cli_reference(), encoding="utf-8")
    (folder / "settings.md").write_text(settings_reference(), encoding="utf-8")


if __name__ == "__main__":
    from callboard.app import load_app

    load_app()
    write(Path("docs/reference"))
