"""The account that `make test-faults` gives, and the command itself, for a moment."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest

from callboard.store import open_store
from callboard.store.base import Fate, Store, Tick
from tests.faults.ledger import Ledger
from tests.faults.soak import STAGES, Fault, account, drawn, soak
from tests.faults.tick_ledger import TickLedger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "sent-a").write_text(
        "".join(f"{job_id} 0.5\n" for job_id in ("good", "lost", "cut", "twice"))
    )
    lines = [
        "start good 1 1.0 1",
        "end good 1 1.1 1",
        "start lost 1 1.2 1",
        "start cut 2 1.3 1",
        "cut cut 2 1.5 1",
        "start cut 1 9.0 1",
        "end cut 1 9.1 1",
        "start twice 1 9.2 1",
        "start twice 3 9.3 1",
        "end twice 1 9.4 1",
        "end twice 3 9.5 1",
    ]
    (tmp_path / "runs").write_text("\n".join(lines) + "\n")
    return Ledger(tmp_path, killed={1: 20.0})


@pytest.fixture
def store() -> Store:
    store = open_store("memory:")
    store.begin_schedule("pulse", spec="* * * * *", until=time.time() - 3)
    return store


@pytest.fixture
def ticks(tmp_path: Path, store: Store) -> TickLedger:
    """Of three seconds that are over."""
    ticks = TickLedger(tmp_path, ["pulse"], store)
    ticks.close()
    return ticks


FAULTS = [Fault("freeze", 0.1, 0.2), Fault("deploy", 1.4, 1.6), Fault("stall", 5.0, 5.1)]


def test_a_job_of_which_no_run_has_ended_is_lost(ledger: Ledger, ticks: TickLedger) -> None:
    assert ledger.lost() == {"lost"}
    assert account(ledger, ticks, [], FAULTS, 1).lost == 1


def test_a_job_that_has_a_dead_letter_is_not_lost(ledger: Ledger, ticks: TickLedger) -> None:
    found = account(ledger, ticks, [("lost", "poison: 3 runs took their worker down")], FAULTS, 1)
    assert found.lost == 0
    assert found.dead == {"poison": 1}


def test_runs_that_overlap_are_found(ledger: Ledger, ticks: TickLedger) -> None:
    assert account(ledger, ticks, [], FAULTS, 1).at_once == 1


def test_a_job_ran_again_after_the_fault_before_its_end(ledger: Ledger, ticks: TickLedger) -> None:
    found = account(ledger, ticks, [], FAULTS, 1)
    assert found.again == 2
    assert found.why_again["after deploy"] == 1
    ledger.killed[2] = 1.5
    assert account(ledger, ticks, [], FAULTS, 1).why_again["its process was killed"] == 1


def test_a_tick_without_a_job_is_missed_unless_it_is_told_why(
    ledger: Ledger, store: Store, ticks: TickLedger
) -> None:
    assert not ticks.is_served(store)
    first, second, *others = sorted(ticks.due())
    found = account(ledger, ticks, [(first, "poison: 3 runs took their worker down")], FAULTS, 1)
    assert (found.ticks, found.ticks_missed) == (2 + len(others), 1 + len(others))
    due = float(second.partition(":")[2])
    missed = Tick(schedule="pulse", due=due, fate=Fate.MISSED, at=due, reason="not served in time")
    store.add_tick(missed, until=time.time())
    assert ticks.is_served(store)
    found = account(ledger, ticks, [], FAULTS, 1)
    assert (found.ticks_told, found.ticks_missed) == (1, 1 + len(others))


def test_a_tick_of_which_two_messages_ran_is_doubled_and_one_that_came_again_is_not(
    ledger: Ledger, ticks: TickLedger, tmp_path: Path
) -> None:
    (tmp_path / "ticks").write_text("pulse:1 1000\npulse:2 2000\npulse:2 2000\n")
    assert account(ledger, ticks, [], FAULTS, 1).ticks_doubled == 0
    with (tmp_path / "ticks").open("a") as noted:
        noted.write("pulse:1 1001\n")
    found = account(ledger, ticks, [], FAULTS, 1)
    assert found.ticks_doubled == 1
    assert not found.is_flawless


def test_an_isolated_run_ends_with_its_worker(ledger: Ledger, tmp_path: Path) -> None:
    nobody = 2**22 + 1  # no process has so high a number
    with (tmp_path / "runs").open("a") as noted:
        noted.write(f"start apart {nobody} 9.6 1 3\nstart apart {nobody + 1} 9.8 1 1\n")
    ledger.killed[3] = 9.7
    assert ledger.runs()["apart"] == [(9.6, 9.7, nobody), (9.8, 20.0, nobody + 1)]
    del ledger.killed[1]
    assert ledger.runs()["apart"][1] == (9.8, 9.8, nobody + 1), "nobody knows when it ended"


def test_the_longest_pause_is_told_with_the_fault_before_its_end(ledger: Ledger, ticks: TickLedger) -> None:
    found = account(ledger, ticks, [], FAULTS, 1)
    assert found.longest_pause == pytest.approx(7.7)
    assert found.paused_by == "stall"


def test_the_same_seed_gives_the_same_faults_and_each_has_its_turn() -> None:
    for stage in STAGES.values():
        first, second = (
            list(itertools.islice(drawn(stage.faults, random.Random("7")), 3 * len(stage.faults)))
            for _ in range(2)
        )
        assert first == second
        assert sorted(first) == sorted(stage.faults * 3)
        assert all(callable(getattr(stage, name)) for name in stage.faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STAGES))
def test_random_faults_lose_nothing_and_run_nothing_twice_at_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak([name], seed=1, seconds=20) == 0, capsys.readouterr().out
