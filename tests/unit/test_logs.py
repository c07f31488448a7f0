"""How log lines look to people."""

from __future__ import annotations

import json
import logging
import re

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from callboard.loggers import get_logger
from callboard.logs import configure_logging, lines_below


def sign_in(password: str) -> None:
    raise ConnectionError("the door stays shut")


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_logged_exception_does_not_tell_the_variables_of_its_frames(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(style=style)
    password = "".join(["hun", "ter2"])  # not as a literal, which the traceback may show
    try:
        sign_in(password)
    except ConnectionError:
        get_logger("callboard.tests").exception("it failed")
        logging.getLogger("another.library").exception("it failed there")
    told = capsys.readouterr().err
    assert told.count("the door stays shut") >= 2
    assert told.count("sign_in(password)") == 2
    assert password not in told


def fail_with(text: str) -> None:
    raise ConnectionError(text)


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp"


def test_what_is_logged_does_not_drive_a_persons_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(style="console")
    log = get_logger("callboard.tests")
    log.warning("a job says", text=f"Grüße\n{EVIL}")
    log.warning(EVIL)
    logging.getLogger(f"named{EVIL}").warning("it says %s", EVIL)
    try:
        fail_with(EVIL)
    except ConnectionError as error:
        log.exception("it failed", error=str(error))
    told = re.sub(r"\x1b\[[0-9]*m", "", capsys.readouterr().err)  # the renderer's own colours
    assert told.count("title\\x07\\x1b[2J\\x9b31m\\u202egnp") >= 6
    assert "Grüße\n" in told
    assert [c for c in told if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("style", ["console", "json"])
def test_what_is_named_like_a_secret_is_not_logged(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(style=style)
    log = get_logger("callboard.tests")
    log.warning(
        "signing in", password="hunter2", user="ada", to={"api_key": "hunter2", "host": "example.org"}
    )
    told = capsys.readouterr().err
    assert "hunter2" not in told
    assert "ada" in told
    assert "example.org" in told


def test_a_text_of_several_lines_stands_below_the_line() -> None:
    event = lines_below(None, "error", {"event": "it failed", "file": "a.py", "error": "line 1\nline 2"})
    assert event == {"event": "it failed", "file": "a.py", "exception": "line 1\nline 2"}


def test_it_stands_above_a_traceback_that_is_there_already() -> None:
    event = lines_below(None, "error", {"event": "it failed", "error": "a\nb", "exception": "Traceback\n..."})
    assert event["exception"] == "a\nb\nTraceback\n..."


def test_what_has_one_line_stays_in_it() -> None:
    event = {"event": "it failed", "error": "one line", "exception": "Traceback\n..."}
    assert lines_below(None, "error", dict(event)) == event


@pytest.mark.parametrize(
    ("level", "successes", "told"),
    [
        ("info", True, ["jobs at debug", "jobs at info", "others at info"]),
        ("info", False, ["jobs at info", "others at info"]),
        ("warning", True, []),
    ],
)
def test_who_wants_to_see_successes_sees_them_at_info(
    level: str, successes: bool, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level=level, style="json", successes=successes)
    for name, logger in (("jobs", "callboard.jobs"), ("others", "callboard.tests")):
        get_logger(logger).debug(f"{name} at debug")
        get_logger(logger).info(f"{name} at info")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == told


def seven() -> int:
    return 7


def test_a_value_that_an_actor_returns_in_vain_is_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    broker = StubBroker(middleware=[])
    results = Results(backend=StubBackend())  # type: ignore[no-untyped-call]  # it has no annotations
    broker.add_middleware(results)
    actor = dramatiq.actor(broker=broker)(seven)
    configure_logging(style="json")
    results.after_process_message(broker, actor.message(), result=7)  # type: ignore[no-untyped-call]
    results.logger.error("the backend is gone")
    told = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in told] == ["the backend is gone"]
