"""One bad job harms no other, nor do seven kinds at once: a thousand good ones run beside them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import pytest

from callboard import dead_letter
from callboard.brokers.base import Broker
from callboard.brokers.driver import Driver, Outgoing
from callboard.operations import Operations
from callboard.queues import QUARANTINE
from callboard.servers import PrivateRabbitmq, PrivateRedis
from callboard.states import State, order
from callboard.store.base import Change
from tests.patience import until
from tests.supervised import App, outgoing

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolated jobs need Linux")

GOOD, MALFORMED = 1_000, 1_000
PATIENCE = 60.0

#: What dies, and what is said of it.
DEADLY = {
    "die": "poison: 3 runs took their worker down",
    "hang": "it ran longer than its limit of 3 s",
    "hold-the-gil-for-ever": "it ran longer than its limit of 3 s",
    "eat-memory": "limit",
}
#: What is a nuisance, and succeeds.
HARMLESS = ("hold-the-gil", "flood-the-log")


def queued(job: Outgoing) -> Change:
    """What a producer lets the store know of a job."""
    return Change(
        job_id=job.job_id,
        order=order(0, State.QUEUED),
        state=State.QUEUED,
        at=time.time(),
        category="jobs",
        queue=job.queue,
        enqueued_at=time.time(),
    )


def malformed(number: int) -> Outgoing:
    bodies = (b"", b"\xff\x00", b"[1, 2]", b'{"actor_name": 7}', b"[" * 20_000, b'{"options": null}')
    return Outgoing("jobs.medium", bodies[number % len(bodies)], f"bad-{number}")


@dataclass
class Aftermath:
    """What is left when all have run, been killed, given up or been set aside."""

    app: App
    good: set[str]
    bad: dict[str, str]  # actor -> job
    dead: dict[str, str]  # job -> reason
    quarantined: int
    broker: Broker

    def why(self, job_id: str) -> str:
        return Operations(self.broker).why(job_id).sentence


def dead(driver: Driver) -> dict[str, str]:
    """The reasons of the dead letters, by job."""
    letters = [dead_letter.decode(stored.body) for stored in driver.peek("jobs.dead")]
    return {letter.job_id: letter.reason for letter in letters}


@pytest.fixture(
    scope="module",
    params=["file", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("redis", "rabbitmq"))],
)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the broker; on the embedded queue in each run of the tests, on the others where there is time."""
    if request.param == "redis":
        server: PrivateRedis = request.getfixturevalue("redis_server")
        server.empty()
        yield server.url
    elif request.param == "rabbitmq":
        node: PrivateRabbitmq = request.getfixturevalue("rabbitmq")
        yield node.add_vhost("company")
        node.delete_vhost("company")
    else:
        yield "file:var"


@pytest.fixture(scope="module")
def aftermath(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    app = App(tmp_path_factory.mktemp("company"), url)
    app.write("actors/bad.py", "import benchmarks.apps.bad_jobs\n")
    good = [outgoing("quick") for _ in range(GOOD)]
    bad = {actor: outgoing(actor) for actor in (*DEADLY, *HARMLESS)}
    mixed = [one for number, job in enumerate(good) for one in (job, malformed(number))]
    for place, job in enumerate(bad.values()):
        mixed.insert(place * 200, job)
    with closing(app), closing(app.open_driver()) as driver:
        app.store.write([queued(job) for job in (*good, *bad.values())])
        driver.put(mixed, deadline=PATIENCE)
        app.start(processes=2, threads=4)
        until(lambda: len({noted[1] for noted in app.notes("end")}) >= GOOD, PATIENCE)
        until(lambda: len(dead(driver)) >= len(DEADLY), PATIENCE)
        until(lambda: driver.counts([QUARANTINE])[QUARANTINE].ready >= MALFORMED, PATIENCE)
        until(lambda: not (counts := app.counts()).ready and not counts.claimed, PATIENCE)
        yield Aftermath(
            app=app,
            good={job.job_id for job in good},
            bad={actor: job.job_id for actor, job in bad.items()},
            dead=dead(driver),
            quarantined=driver.counts([QUARANTINE])[QUARANTINE].ready,
            broker=Broker(driver, store=app.store, one_host=True),
        )


def test_every_good_job_runs_and_uses_one_attempt(aftermath: Aftermath) -> None:
    notes = aftermath.app.notes
    assert {noted[1] for noted in notes("end")} == aftermath.good
    assert {noted[3] for noted in notes("start")} == {"1"}


def test_none_is_dead_but_those_that_ask_for_it(aftermath: Aftermath) -> None:
    assert aftermath.dead.keys() == {aftermath.bad[actor] for actor in DEADLY}


def test_all_that_cannot_be_read_is_in_quarantine(aftermath: Aftermath) -> None:
    assert aftermath.quarantined == MALFORMED


@pytest.mark.parametrize(("actor", "words"), DEADLY.items())
def test_each_letter_says_what_the_job_died_of_and_so_does_why(
    actor: str, words: str, aftermath: Aftermath
) -> None:
    job_id = aftermath.bad[actor]
    assert words in aftermath.dead[job_id]
    sentence = until(lambda: (found := aftermath.why(job_id)).startswith("Dead") and found, PATIENCE)
    assert words in sentence or "its record, which says" in sentence, "or says that it can't tell"


@pytest.mark.parametrize("actor", HARMLESS)
def test_why_says_that_a_nuisance_has_succeeded(actor: str, aftermath: Aftermath) -> None:
    until(partial(succeeded, aftermath, aftermath.bad[actor]), PATIENCE)


def test_why_says_of_good_jobs_that_they_have_succeeded_or_that_it_does_not_know(
    aftermath: Aftermath,
) -> None:
    """What a process that was killed had not yet written is lost; that is a matter of milliseconds."""
    for job_id in sorted(aftermath.good)[:: GOOD // 50]:
        until(partial(succeeded, aftermath, job_id), PATIENCE)


def succeeded(aftermath: Aftermath, job_id: str) -> bool:
    sentence = aftermath.why(job_id)
    return sentence.startswith("Succeeded") or "the broker no longer has it" in sentence
