"""The gates: when they are met, and what the report says of one that isn't."""

from __future__ import annotations

from benchmarks import asked, gates
from benchmarks.__main__ import MEASUREMENTS
from benchmarks.figures import Figures
from benchmarks.gates import Gate, difference, median, ratio
from benchmarks.measurements import far_future, growth, many_queues, mixed, peers
from benchmarks.systems.callboard import CALLBOARDS


def figures(ours: float, theirs: float) -> dict[str, Figures]:
    found = Figures(["rate", "other"])
    for value in (ours, ours * 10, ours / 10):
        found.add("we", "rate", value)
    found.add("they", "rate", theirs)
    found.add("we", "other", theirs)
    return {"race": found}


FASTER = Gate("faster", "race", "our rate to theirs", ratio("we", "rate", "they"), 3)
CHEAPER = Gate("cheaper", "race", "our cost", median("we", "rate"), 5, least=False, unit=" ms")


def test_a_ratio_is_that_of_the_medians() -> None:
    assert FASTER.found(figures(600, 200)) == 3.0


def test_a_gate_that_asks_for_at_least_is_met_at_what_is_asked_and_not_below() -> None:
    assert FASTER.met(figures(600, 200)) is True
    assert FASTER.met(figures(599, 200)) is False


def test_a_gate_that_asks_for_at_most_is_met_at_what_is_asked_and_not_above() -> None:
    assert CHEAPER.met(figures(5, 1)) is True
    assert CHEAPER.met(figures(5.1, 1)) is False


def test_a_difference_is_that_of_two_columns_of_one_row() -> None:
    assert difference("we", "rate", "other")(figures(60, 50)["race"]) == 10
    assert difference("they", "rate", "other")(figures(60, 50)["race"]) is None


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert FASTER.met({}) is None
    assert FASTER.met({"race": Figures(["rate"])}) is None
    assert FASTER.row({}, {}) == "| our rate to theirs | at least 3 | - | not measured | |"


def test_a_rate_of_nothing_gives_no_ratio() -> None:
    assert FASTER.found(figures(600, 0)) is None


def test_a_missed_gate_is_visible_with_what_is_in_the_way() -> None:
    row = FASTER.row(figures(300, 200), {"faster": "The road is closed."})
    assert row == "| our rate to theirs | at least 3 | 1.50 | **not met** | The road is closed. |"


def test_what_was_in_the_way_of_a_gate_that_is_met_is_not_told() -> None:
    row = FASTER.row(figures(900, 200), {"faster": "The road is closed."})
    assert row == "| our rate to theirs | at least 3 | 4.50 | met |  |"


def test_a_gate_shows_its_unit() -> None:
    assert CHEAPER.row(figures(4, 1), {}) == "| our cost | at most 5 ms | 4 ms | met |  |"


def test_every_gate_has_a_key_of_its_own_and_a_measurement_that_can_be_made() -> None:
    every = (*asked.GATES, *asked.AIMS)
    assert len({gate.key for gate in every}) == len(every)
    assert {gate.measurement for gate in every} <= set(MEASUREMENTS)


def test_what_is_in_the_way_is_said_of_gates_that_exist() -> None:
    assert set(gates.in_the_way()) <= {gate.key for gate in (*asked.GATES, *asked.AIMS)}


def test_every_gate_finds_its_figures_in_a_run_of_its_measurement() -> None:
    columns = {
        "peers": peers.COLUMNS,
        "far-future": far_future.COLUMNS,
        "many-queues": many_queues.COLUMNS,
        "growth": growth.COLUMNS,
        "mixed": mixed.COLUMNS,
        "publishing": ("asked", "measured"),
        "promises": ("CPU µs per job", "processed /s"),
    }
    everything = {name: Asked(columns[name]) for name in columns}
    unmet = [gate.key for gate in (*asked.GATES, *asked.AIMS) if gate.found(everything) is None]
    assert unmet == []
    systems = {
        "peers": peers.SYSTEMS,
        "far-future": far_future.SYSTEMS,
        "many-queues": many_queues.SYSTEMS,
        "growth": CALLBOARDS,
        "mixed": CALLBOARDS,
    }
    for name, classes in systems.items():
        assert everything[name].rows_asked <= {system.name for system in classes}, name


class Asked(Figures):
    """Has a figure in every column of every row that is asked for, and remembers the rows."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        super().__init__(columns)
        self.rows_asked: set[str] = set()

    def median(self, row: str, column: str) -> float | None:
        self.rows_asked.add(row)
        return 1.0 if column in self.columns else None
