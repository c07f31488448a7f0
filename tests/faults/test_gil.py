"""A job that holds the GIL, and with it the threads that speak to RabbitMQ, for longer than the heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.servers import PrivateRabbitmq
from tests.patience import until
from tests.supervised import App, app_in

_HOLDER = '''
"""A call into C that keeps the GIL."""
import ctypes

from actors.jobs import note
from broker import actor


@actor(category="jobs", retries=0)
def hold_the_gil() -> None:
    note("start")
    ctypes.PyDLL(None).sleep(14)
    note("end")
'''


@pytest.fixture
def app(tmp_path: Path, amqp_url: str) -> Iterator[App]:
    for app in app_in(tmp_path, f"{amqp_url}?heartbeat=4"):
        app.write("actors/holder.py", _HOLDER)
        yield app


@pytest.mark.slow
def test_a_job_that_holds_the_gil_for_longer_than_the_heartbeat_runs_once(
    app: App, rabbitmq: PrivateRabbitmq, amqp_url: str
) -> None:
    """RabbitMQ closes the connection and delivers the job to a sibling, which sees that it runs, and waits; then that
    it has ended, and drops the copy. Others run meanwhile."""
    app.start(processes=2, threads=2)
    holder = app.send("hold-the-gil")
    until(lambda: app.notes("start"))
    other = app.send("quick")
    until(lambda: any(noted[1] == holder for noted in app.notes("end")), 60)
    until(lambda: any(noted[1] == other for noted in app.notes("end")), 60)
    vhost = amqp_url.rpartition("/")[2]
    listed = ("list_queues", "--quiet", "--no-table-headers", "-p", vhost, "name", "messages")
    until(lambda: "jobs.medium\t0" in rabbitmq.ctl(*listed), 60)  # the copy is gone, not only claimed
    assert [noted[1] for noted in app.notes("start")].count(holder) == 1
