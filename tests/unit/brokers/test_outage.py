"""An outage of the broker in the log: the same two lines with every driver, each once."""

from __future__ import annotations

import socket
import time

import pytest
import structlog

from callboard.brokers import open_driver
from callboard.brokers.driver import IntakeOptions
from callboard.brokers.outage import Outage

PATIENCE = 60.0


def test_an_outage_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    outage = Outage(connection="ours")
    with structlog.testing.capture_logs() as logs:
        outage.end()
        for reason in ("it is gone", "it is still gone"):
            outage.begin(reason)
            assert outage
        outage.end(address="there")
        outage.end()
        assert not outage
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("broker_unavailable", "warning"),
        ("broker_available", "info"),
    ]
    assert logs[0]["reason"] == "it is gone"
    assert logs[1]["address"] == "there"
    assert logs[1]["away_seconds"] >= 0
    assert {line["connection"] for line in logs} == {"ours"}


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_whatever_the_driver_a_broker_that_is_away_is_told_in_the_same_words(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and doesn't listen
        driver = open_driver(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}/")
        with structlog.testing.capture_logs() as logs:
            intake = driver.open_intake(IntakeOptions(["mail.low"], budget=1, worker="us"))
            end = time.monotonic() + PATIENCE
            while not logs and time.monotonic() < end:
                assert intake.fetch(1, 0.1) == []
            intake.close()
            driver.close()
    assert logs[0]["event"] == "broker_unavailable"
    assert logs[0]["log_level"] == "warning"
    assert "is away: connection refused; is it running?" in logs[0]["reason"]
