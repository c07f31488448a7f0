"""Where Callboard's log lines go."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator

import pytest
import structlog

from callboard.loggers import get_logger


def structlogs_class() -> type[logging.Logger]:
    """structlog makes it the class of all loggers to come."""
    usual = logging.getLoggerClass()
    structlog.stdlib.LoggerFactory()
    its = logging.getLoggerClass()
    logging.setLoggerClass(usual)
    return its


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("made_by", [logging.Logger, structlogs_class()])
def test_lines_go_to_logging_while_structlog_is_not_configured(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], made_by: type[logging.Logger]
) -> None:
    usual = logging.getLoggerClass()
    logging.setLoggerClass(made_by)
    name = f"callboard.tests.{made_by.__name__}"
    log = get_logger(name).bind(job_id="01J")
    logging.setLoggerClass(usual)
    with caplog.at_level(logging.INFO, name):
        log.info("100 %s held", queue="high", wait=None)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        name,
        "INFO",
        "100 %s held job_id='01J' queue='high'",
    )
    assert record.pathname == __file__
    assert record.funcName == "test_lines_go_to_logging_while_structlog_is_not_configured"
    assert capfd.readouterr().out == ""


def test_the_exception_goes_along_and_texts_of_several_lines_stand_below(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = get_logger("callboard.tests")
    try:
        int("no number")
    except ValueError as error:
        log.exception("it failed")
        expected = error
    log.error("it failed", exception="Traceback\n...", reason="a")
    first, second = caplog.records
    assert first.exc_info is not None and first.exc_info[1] is expected
    assert first.pathname == __file__
    assert second.getMessage() == "it failed reason='a'\nTraceback\n..."


def test_a_level_that_logging_leaves_out_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("callboard.tests")
    with caplog.at_level(logging.ERROR, "callboard.tests"):
        log.warning("not this")
        log.error("%s of %d", "this", 2)
    assert [record.getMessage() for record in caplog.records] == ["this of 2"]


def test_once_structlog_is_configured_its_configuration_holds(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("callboard.tests")
    bound = log.bind(job_id="01J")
    log.warning("before")
    with structlog.testing.capture_logs() as lines:  # configures structlog
        log.warning("after")
        bound.warning("after, bound before")
    assert [record.getMessage() for record in caplog.records] == ["before"]
    assert lines == [
        {"event": "after", "log_level": "warning"},
        {"event": "after, bound before", "log_level": "warning", "job_id": "01J"},
    ]


def test_a_logger_can_be_copied_and_pickled(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("callboard.tests").bind(a=1)
    for twin in (copy.copy(log), copy.deepcopy(log), pickle.loads(pickle.dumps(log))):
        twin.warning("it works")
    assert [record.getMessage() for record in caplog.records] == ["it works a=1"] * 3
