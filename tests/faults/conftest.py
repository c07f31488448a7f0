"""What the tests of faults share: producers and a worker whose ledger is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Ledger, Processes, environment_in


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Nothing runs yet. What is started ends with the test."""
    processes = Processes(environment_in(tmp_path), Ledger(tmp_path))
    yield processes
    processes.stop()
